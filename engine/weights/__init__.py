"""Finds checkpoints, fetches them and reads their tensors. Start at `source.py`."""
