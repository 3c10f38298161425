"""Akosha over MCP (streamable HTTP). Importing this loads no HTTP library: the first call does, on a thread."""

from agent.adapters.akosha.sink import AkoshaSink

__all__ = ["AkoshaSink"]
