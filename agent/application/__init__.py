"""What happens. Knows ports, no technology."""
