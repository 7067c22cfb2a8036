"""Texts to embeddings: an engine without caches that answers whole inputs in each step."""
