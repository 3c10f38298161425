"""Akosha over MCP (streamable HTTP). The first call loads the HTTP library, in a thread."""

from agent.adapters.akosha.sink import AkoshaSink

__all__ = ["AkoshaSink"]
