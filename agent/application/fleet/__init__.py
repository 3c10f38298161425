"""The fleet: the state of every system that is known from the bucket or from NATS."""
