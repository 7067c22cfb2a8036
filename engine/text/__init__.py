"""Between text and token ids, without torch: tokenizers, chat templates, text streams, stops.

Owns everything that is about characters, for the HTTP process. Knows no requests and no model; only
`gguf_metadata` is shared with `engine.weights`. Start reading at `tokenizer.py`; one completion's
text goes through `detokenizer.py`, then `stop.py`.
"""
