"""Other servers' APIs, one folder each, whose requests become those of our own routes.

A dialect adds no behaviour: it converts a client's body to OpenAI's, hands it to the function that
answers our own route, and writes the answer in its own form. Start reading at `dialect.py`.
"""
