"""Diff and explain: reads bundles and receipts."""
