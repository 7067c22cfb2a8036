"""Everything behind the HTTP face: the worker processes and what they compute.

The server uses `engine.{client,types,config,errors,text,logs,version}` only. Text generation is in
`engine/llm` (start at `engine/llm/engine.py`), the process border in `client.py` and `loop.py`.
"""
