"""`service`: the agent as a service of this user: systemd on Linux, launchd on macOS."""
