"""Other servers' APIs, a folder each, which become the requests of our own routes.

A dialect adds no behaviour: it makes OpenAI's body of what was sent, hands it to the function that
answers our own route, and writes the answer in its shape. Start reading at `dialect.py`.
"""
