"""What requests of every kind need: connections, bodies, admission, streams and errors.

Knows no kind of model: `server/text` and `server/images` build on it. Start at `sse.py`.
"""
