"""The parts that requests of every kind need: connections, bodies, admission, streams and errors.

This folder knows no kind of model: `server/text` and `server/images` build on it. Start at
`sse.py`.
"""
