"""Everything between text and token ids, without torch: tokenizers, chat templates, text streams,
stops.

The HTTP process uses this folder for all work on characters. It contains nothing about requests or
models. Start reading at `tokenizer.py`; the text of one completion goes through `detokenizer.py`,
then `stop.py`.
"""
