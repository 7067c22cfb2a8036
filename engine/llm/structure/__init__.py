"""Structured output: a grammar is made once per structure, and a mask before each token.

Start at `engine/llm/structure/grammars.py::Grammars`. The grammars are those of llguidance.
"""
