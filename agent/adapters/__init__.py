"""One technology each, strangers to each other."""
