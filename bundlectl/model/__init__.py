"""The ground floor: frozen types, canonical JSON, digests, errors. It imports nothing of bundlectl."""
