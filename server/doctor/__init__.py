"""`tandem doctor`: what a machine lacks to serve, and how to fix it. Start at `command.py`.

Nothing here imports torch: its build is read from its files, the driver is asked directly.
"""
