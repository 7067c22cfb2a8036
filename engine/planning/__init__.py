"""What a model will take of a device, and how fast it can be there: from headers, before any weight
is read. `tandem plan` prints it, and an engine that finds too little memory says it.

Owns the arithmetic, not the decision: `engine.config.resolve` sizes what is then served, with the
same numbers. Start reading at `text.py`.
"""
