"""Language models over HTTP: from a prompt to token ids, and from tokens to OpenAI's answers.

Start at `generation.py`, which runs the engine's side of one request.
"""
