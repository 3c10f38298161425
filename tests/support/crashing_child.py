"""A child process that crashes when it gets a command."""

import os
import sys

sys.stdin.readline()
os.abort()
