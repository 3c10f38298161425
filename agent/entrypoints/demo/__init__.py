"""`demo`: runs a writer and the agent on scratch data, with a directory as the bucket, and checks the uploads."""
