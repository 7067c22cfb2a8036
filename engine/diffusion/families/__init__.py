"""One file per model family, each an implementation of `engine.diffusion.families.family.Family`."""
