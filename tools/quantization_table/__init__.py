"""Measures what formats of weights cost and bring: the tables of docs/quantization.md.

Start reading at `__main__.py`; the rows of the tables are in `formats.py`.
"""
