"""How good a text model's numbers are, as it is kept here: run by `tandem perplexity`.

Loads models without an engine and scores passages of a text one by one, so that whole distributions
of two models can be compared and none is kept. What is scored and summed is in
`engine/text/scores`. Start reading at `measurement.py`.
"""
