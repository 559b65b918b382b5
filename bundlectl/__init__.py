"""bundlectl: build, evaluate, sign, promote and roll back AI release bundles."""

__version__ = "0.1.0"
