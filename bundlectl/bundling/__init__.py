"""From source files to a bundle."""
