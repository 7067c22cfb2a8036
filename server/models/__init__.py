"""Models that come and go while the server runs: which may, and who loads and unloads them.

Start at `library.py`. What a model is asked for once it serves is in the folder of its kind.
"""
