"""Models that are loaded and unloaded while the server runs: which ones may be, and who loads and
unloads them.

Start at `library.py`. Requests to a model that serves are handled in the folder of its kind.
"""
