"""One sync: from a request to its result."""
