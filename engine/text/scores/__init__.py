"""Scores of how well a model expects a text: the scored tokens, their classes and their sums.

The scores themselves come from `engine.commands.quality` or from a server; this folder uses no
tensors. Start reading at `passages.py`.
"""
