"""Between text and token ids, without torch: tokenizers, chat templates, detokenising, stop strings."""
