"""How well a model expects a text: which tokens are scored, what they are, what it comes to.

Owns no model: scores come from `engine.quality` or from a server. Knows no tensors. Start reading
at `passages.py`.
"""
