"""Texts of a given form: a grammar is made once, a mask before each token.

Start at `engine/llm/structure/grammars.py::Grammars`. The grammars are llguidance's.
"""
