"""The triggers of a sync."""
