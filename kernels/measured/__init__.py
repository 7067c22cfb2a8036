"""Measurements of which way to multiply is faster on this machine: timed once, kept between starts.

This folder imports the operations that it times, and `engine` uses it. Start at
`self_benchmark.py`.
"""
