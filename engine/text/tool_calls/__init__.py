"""Calls of functions in the text that models write, one file for each family's way to write them.

Owns how calls are read out of a text that arrives in parts. Knows no wire format: what is read
comes out as `engine.text.answer_pieces`. Start reading at `parser.py`; `table.py` says which
parsers there are, and `engine.text.chat_format` which one a chat template asks for.
"""
