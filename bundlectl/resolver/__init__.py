"""The thin resolver: trusted rules, polling, last good."""
