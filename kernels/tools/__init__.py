"""Programs about the operations: `check`, `bench`, `compile` and `tune`, and what they are made of.

For contributors and tests: no operation imports them, and serving runs none. Start at `bench.py`.
"""
