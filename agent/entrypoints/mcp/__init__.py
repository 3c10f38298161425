"""`mcp`: the MCP server that a coding assistant starts; they exchange JSON-RPC over standard input and output.

Only this command imports the SDK. What the tools need is imported when they are listed or called: the client waits for
the handshake.
"""
