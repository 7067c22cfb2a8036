"""The process and its operator: options, socket, start, the terminal's output, graceful shutdown.

This folder is above the app, which does not know it. Start at `serve.py`.
"""
