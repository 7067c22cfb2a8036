"""Encoders of pictures, and the models that pair one with a decoder."""
