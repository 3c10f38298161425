"""The uploads in the bucket: list, verify, prune, restore."""
