"""Embeddings: converts bodies to token ids, and vectors to OpenAI's answers."""
