"""`mcp`: an MCP server that a coding assistant starts; JSON-RPC over standard input and output.

Only this command imports the SDK. The tools' own imports happen when they are listed or called, because the client
waits for the handshake.
"""
