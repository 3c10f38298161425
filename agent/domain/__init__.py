"""The domain: value types and pure functions. Standard library only: no I/O, no clock, no async."""
