"""The registry operations on a store."""
