"""Pure, synchronous pieces of the request path, compiled once per bundle."""
