"""Commit a head into a folder's registry, and be killed after so many writes. Run as a process of its own."""

import os
import signal
import sys
from pathlib import Path

from bundlectl.registry.releases import Releases
from bundlectl.storage.directory import DirectoryStore
from bundlectl.storage.faults import Crash, FaultyStore

folder, head, writes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
store = FaultyStore(DirectoryStore(folder))
store.crash_after(writes)
try:
    releases = Releases(store)
    releases.commit("support", "dev", releases.read_head("support", "dev"), head.read_bytes())
except Crash:
    os.kill(os.getpid(), signal.SIGKILL)
