"""Removes backgrounds: a network finds the subject, matting its soft edge. Start at `job.py`."""
