"""Layers and checkpoints in quantized formats."""
