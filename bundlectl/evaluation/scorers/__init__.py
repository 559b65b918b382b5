"""Scorers: each gives one case's answer a score in [0, 1]; one file per family, named in ``table.py``."""
