"""Documents, chunks, index, search, packing."""
