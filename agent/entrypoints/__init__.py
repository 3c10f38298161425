"""Interfaces for users and other programs: commands, control API, MCP server, hook."""
