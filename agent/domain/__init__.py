"""GROUND: what things are and what follows from what. Standard library only; no I/O, no clock, no async."""
