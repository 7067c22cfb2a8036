"""The process and who runs it: options, socket, start, what a terminal shows, orderly end.

Above the app, which does not know it. Start at `serve.py`.
"""
