"""`hook`: the session-end hook of Claude Code, which notifies the agent; its installation and removal."""
