"""Programs about the operations (`check`, `bench`, `compile` and `tune`) and their parts.

They are for contributors and tests: no operation imports them, and serving runs none. Start at
`bench.py`.
"""
