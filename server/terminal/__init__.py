"""`tandem chat`, `models`, `perplexity`: commands that ask a running server, as any client would.

The last one also measures models that it has loaded by a process of its own, `engine.quality`.
"""
