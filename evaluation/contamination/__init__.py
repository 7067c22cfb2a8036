"""Whether a model saw a task in training: `tandem eval contamination`.

Owns: a score of each item by several methods, and the test against items that are known to be
unseen. Start reading at `methods.py`.
"""
