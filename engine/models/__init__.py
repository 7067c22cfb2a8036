"""Decoder families, one self-contained file each. Start at `engine/models/registry.py`."""
