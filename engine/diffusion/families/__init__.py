"""One file per model family, each an implementation of `family.Family`."""
