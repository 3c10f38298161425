"""`hook`: what a coding assistant runs when a session ends: it tells the agent, and costs nothing."""
