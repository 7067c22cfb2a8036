"""Embeddings: bodies to token ids, vectors to OpenAI's answers."""
