"""From a registry that anyone may have touched to a bundle that may serve: rules, polling, the last good on disk."""
