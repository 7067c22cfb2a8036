"""Describes a tokenizer with the names of tokenizer_config.json."""

from dataclasses import fields

from engine.contract.generate import ModelInfo
from engine.text.tokenizer import Tokenizer
from server.protocol.tokenize import AddedToken, TokenizerInfo


def tokenizer_info(tokenizer: Tokenizer, info: ModelInfo) -> TokenizerInfo:
    """The facts about a tokenizer that a client may know: all but the vocabulary."""
    special = tokenizer.special_tokens
    return TokenizerInfo(
        tokenizer_class=type(tokenizer.raw.model).__name__,
        model_max_length=info.max_model_len,
        vocab_size=tokenizer.vocab_size,
        bos_token=special.get("bos_token"),
        eos_token=special.get("eos_token"),
        unk_token=special.get("unk_token"),
        pad_token=special.get("pad_token"),
        added_tokens_decoder={
            token_id: AddedToken(*(getattr(token, field.name) for field in fields(AddedToken)))
            for token_id, token in sorted(tokenizer.raw.get_added_tokens_decoder().items())
        },
        chat_template=tokenizer.chat_template,
    )
