"""Observe and control the running agent: status, events, health, remote control."""
