"""Measures how closely an enlarged picture keeps to its input, and brings it closer.

It compares a result with its input and corrects it; it does not make results. It works on numpy
arrays in bands of rows, so that 8K pictures need little extra memory. Start reading at
`consistency.py`.
"""
