"""Reads small files of checkpoints with bounds, and the headers and part names of GGUF files."""
