"""What asks for a sync."""
