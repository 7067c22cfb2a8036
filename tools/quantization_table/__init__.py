"""Measures the costs and gains of weight formats for the tables of docs/quantization.md.

Start reading at `__main__.py`; the rows of the tables are in `formats.py`.
"""
