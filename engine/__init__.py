"""Everything behind the HTTP face: the worker processes and what they compute.

The server uses the files of this folder and `engine/text` only. Text generation is in `engine/llm`,
images in `engine/diffusion` (start at their `engine.py`), the process border in `client.py` and
`loop.py`.
"""
