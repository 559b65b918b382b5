"""Envelopes, signers, keyring, evidence and gate rules."""
