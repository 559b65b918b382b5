"""Where bytes are kept: one protocol, and a store per backend."""
