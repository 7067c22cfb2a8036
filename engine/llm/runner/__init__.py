"""Computes decided steps with a model."""
