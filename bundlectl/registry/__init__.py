"""The registry's operations: layout, put and get bundles, commit a release, history; and OCI layouts."""
