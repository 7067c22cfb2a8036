"""Tries every language model that transformers knows. Start reading at `__main__.py`."""
