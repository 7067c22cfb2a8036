"""Enlarging images: bodies to requests, rows to files."""
