"""A child process that never answers."""

import sys

sys.stdin.read()
