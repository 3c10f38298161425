"""`demo`: a writer, the agent and a directory as the bucket, on scratch data; then checks of what arrived."""
