"""Models and embeddings behind small protocols, one provider per file."""
