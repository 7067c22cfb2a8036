"""The worker processes, what they compute, and the client through which the server reaches them.

The server imports only the files of this folder and `engine/text`. Text generation is in
`engine/llm`, images in `engine/diffusion` (start at their `engine.py`), the process boundary in
`engine/worker` (`client.py` and `loop.py`).
"""
