"""The control API: HTTP on a Unix socket in the state directory, and on a loopback port where one is set."""
