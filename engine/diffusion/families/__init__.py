"""The model families, one per file, each an implementation of `family.Family`."""
