"""Hold the lock on a file until something comes on stdin."""

import fcntl
import sys
from pathlib import Path

with Path(sys.argv[1]).open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
