"""How this server answers a request, one file per operation. Routes and dialects call these
functions with a body in OpenAI's form; what all operations have in common is in `exchange.py`."""
