"""How people and other programs meet the agent."""
