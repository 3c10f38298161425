"""`init`: asks where memories go, tests that, stores it, and starts what the user wants."""
