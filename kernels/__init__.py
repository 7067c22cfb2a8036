"""The hot operations: one folder per op, each fast version beside its readable reference."""
