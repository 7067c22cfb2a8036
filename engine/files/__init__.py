"""Reads small files of checkpoints with bounds, and names of GGUF parts."""
