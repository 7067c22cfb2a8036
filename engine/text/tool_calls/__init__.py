"""Function calls in the text that models write, with one file for each family's notation.

The parsers read calls out of a text that arrives in parts. They know no wire format: the results
are `engine.text.answer_pieces`. Start reading at `parser.py`; `parsers.py` lists the parsers, and
`engine.text.chat_format` finds the one that a chat template needs.
"""
