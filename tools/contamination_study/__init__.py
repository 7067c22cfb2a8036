"""Tests the methods of `tandem eval contamination` on questions that a model is known to have seen
in training, or not: their facts are invented. Start reading at `__main__.py`.
"""
