"""Measures how good a text model's numbers are in its served form, for `tandem perplexity`.

It loads models without an engine and scores passages of a text one by one, so that whole
distributions of two models can be compared and none is kept. `engine/text/scores` defines what is
scored and summed. Start reading at `measurement.py`.
"""
