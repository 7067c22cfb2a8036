"""Reads models in ncnn's format: a text file of layers (`.param`) and their weights (`.bin`)."""
