"""Memories: what a target lacks, and its delivery."""
