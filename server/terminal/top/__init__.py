"""`tandem top`: what a running server does, read again each second.

`reading.py` reads it over HTTP, `view.py` draws it, `command.py` repeats both.
"""
