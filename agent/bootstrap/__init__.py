"""Builds the agent's objects from settings: the only package that knows which adapter implements which port."""
