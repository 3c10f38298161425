"""`demo`: everything at work on scratch data, with no server and no account, and a check of what arrived."""

from agent.entrypoints.demo.run import run_demo

__all__ = ["run_demo"]
