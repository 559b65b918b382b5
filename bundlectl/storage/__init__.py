"""Where bytes are kept: one small protocol, a folder or memory behind it, and a layer of faults for tests."""
