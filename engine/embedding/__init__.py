"""Texts to embeddings: an engine without caches, whose every step answers whole inputs."""
