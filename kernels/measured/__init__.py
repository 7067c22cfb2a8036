"""Which way to multiply is faster on this machine: timed once, kept between starts.

Stands above the operations that it times, and `engine` asks it. Start at `self_benchmark.py`.
"""
