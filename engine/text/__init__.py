"""Between text and token ids, without torch: tokenizers, chat templates, text streams, stops."""
