"""Suites, scorers, runner, reports."""
