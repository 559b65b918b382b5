"""Receipts: write and read."""
