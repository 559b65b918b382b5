"""``python -m bundlectl``."""

from bundlectl.cli import main

if __name__ == "__main__":
    main()
