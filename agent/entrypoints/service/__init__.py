"""`service`: the agent as a service of this user, managed by systemd on Linux and launchd on macOS."""
