"""Loads a model and sizes its memory."""
