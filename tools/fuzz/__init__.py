"""Fuzzing for hours: readers of files (`readers.py`) and the HTTP surface (`surface.py`).

Every trial follows from its seed alone, so a finding is a seed and the bytes that it made.
"""
