"""A tokenizer from a GGUF file's metadata: byte-level BPE, SentencePiece and Gemma 4's.

The ids are those of llama.cpp, for which the file was made. transformers' conversion differs: it
cuts SmolLM2's digits in another way than in training.
"""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models

from engine.errors import CorruptFile, UnsupportedArchitecture
from engine.files.gguf_header import read_gguf_header
from engine.text.gguf_pre_tokenizers import pre_tokenizer_rule
from engine.text.spm_tokenizer import build_spm_tokenizer, set_spaces
from engine.text.tokenizer_parts import (
    TokenizerParts,
    set_boundary_tokens,
    with_tool_template,
)
from engine.text.vocabulary import TokenType, Vocabulary

_SPECIAL_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # as llama.cpp spells it
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
_END_IDS = ("eos_token_id", "eot_token_id", "eom_token_id")
END_TOKENS = frozenset(
    (
        "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>", "<|end|>",
        "</s>", "<end_of_turn>", "<end_of_utterance>", "<EOT>", "<\uff5cend▁of▁sentence\uff5c>",
        "<|return|>", "<|call|>", "<|eot|>", "<|eom|>", "<turn|>", "<|tool_response>",
    )
)  # fmt: skip
"""Names of control tokens that end an answer; many files state only one of two ends."""
_NO_ENDS = {"<|return|>": "<|end|>", "<|tool_response>": "</s>"}
"""Names that do not end an answer in vocabularies with another one: GPT-OSS's answers have several
messages, and `</s>` is text for Gemma 4."""

_SPM_IDS = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
"""SentencePiece's own ids, for files that do not state theirs."""

T = TypeVar("T")


def end_tokens(tokens: Container[str]) -> frozenset[str]:
    """Return the names of `END_TOKENS` that end an answer of a model with these tokens."""
    return END_TOKENS - {name for other, name in _NO_ENDS.items() if other in tokens}


def read_gguf_tokenizer(path: Path) -> TokenizerParts:
    """Read a tokenizer from a GGUF file.

    Raises:
        CorruptFile: the file is damaged, or its vocabulary contradicts itself.
        UnsupportedArchitecture: the tokenizer model or pre-tokenizer is unknown; the message names
            it.
    """
    return gguf_tokenizer_parts(read_gguf_header(path).metadata)


def gguf_tokenizer_parts(metadata: Mapping[str, Any]) -> TokenizerParts:
    """Build a tokenizer from metadata that has been read already."""
    keys = _Keys(metadata)
    kind = keys.get("ggml.model", str, "none")
    if kind == "gpt2":
        return _parts(keys, *_byte_level_bpe(keys))
    if kind == "llama":
        return _parts(keys, *_sentencepiece(keys))
    if kind == "gemma4":
        return _parts(keys, *_spaced_bpe(keys))
    raise UnsupportedArchitecture(
        f"the GGUF file's tokenizer has model {kind[:80]!r}; it must be gpt2 (byte-level BPE), "
        f"llama (SentencePiece) or gemma4"
    )


def _parts(
    keys: "_Keys", vocabulary: Vocabulary, raw: RawTokenizer, adds_bos: bool
) -> TokenizerParts:
    vocabulary.add_whole_tokens(raw, special=end_tokens(vocabulary.tokens))
    tokens = {name: vocabulary.token(keys.token_id(key)) for name, key in _SPECIAL_IDS.items()}
    special_tokens = {name: token for name, token in tokens.items() if token is not None}
    adds_bos = keys.get("ggml.add_bos_token", bool, adds_bos)
    adds_eos = keys.get("ggml.add_eos_token", bool, False)
    set_boundary_tokens(
        raw,
        special_tokens.get("bos_token") if adds_bos else None,
        special_tokens.get("eos_token") if adds_eos else None,
    )
    return TokenizerParts(
        raw=raw,
        special_tokens=special_tokens,
        eos_token_ids=_end_token_ids(keys, vocabulary),
        chat_template=_chat_template(keys),
    )


def _chat_template(keys: "_Keys") -> str | None:
    template = keys.get("chat_template", str, "")
    for_tools = keys.get("chat_template.tool_use", str, "")
    return with_tool_template(template, for_tools) if template and for_tools else template or None


def _byte_level_bpe(keys: "_Keys") -> tuple[Vocabulary, RawTokenizer, bool]:
    rule = pre_tokenizer_rule(keys.get("ggml.pre", str, "default"))
    vocabulary = _vocabulary(keys)
    raw = RawTokenizer(_bpe(keys, vocabulary, ignore_merges=rule.ignore_merges))
    raw.pre_tokenizer = rule.create()
    raw.decoder = decoders.ByteLevel()
    return vocabulary, raw, rule.adds_bos


def _spaced_bpe(keys: "_Keys") -> tuple[Vocabulary, RawTokenizer, bool]:
    """Build Gemma 4's tokenizer: SentencePiece's form of spaces, and merges in the file. Old files
    deny the token that begins a text."""
    vocabulary = _vocabulary(keys)
    unknown = vocabulary.of_type((TokenType.UNKNOWN,))
    raw = RawTokenizer(
        _bpe(
            keys,
            vocabulary,
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,
            byte_fallback=TokenType.BYTE in vocabulary.types,
        )
    )
    set_spaces(raw)
    keys.metadata = {**keys.metadata, "tokenizer.ggml.add_bos_token": True}
    return vocabulary, raw, True


def _bpe(keys: "_Keys", vocabulary: Vocabulary, **options: Any) -> models.BPE:
    """Build a model from the file's merges."""
    try:
        return models.BPE(
            vocab={token: i for i, token in enumerate(vocabulary.tokens)},
            merges=[_pair(merge) for merge in keys.list("ggml.merges", str)],
            **options,
        )
    except Exception as error:  # the library raises this very class
        raise CorruptFile(f"the GGUF file's merges contradict its vocabulary: {error}") from error


def _sentencepiece(keys: "_Keys") -> tuple[Vocabulary, RawTokenizer, bool]:
    keys.default_ids = _SPM_IDS
    vocabulary = _vocabulary(keys)
    has_prefix = keys.get("ggml.add_space_prefix", bool, True)
    raw = build_spm_tokenizer(vocabulary, prefix="every" if has_prefix else "none")
    return vocabulary, raw, True


def _vocabulary(keys: "_Keys") -> Vocabulary:
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(keys.list("ggml.tokens", str))]
    types = keys.list("ggml.token_type", int) or [TokenType.NORMAL] * len(tokens)
    scores = keys.list("ggml.scores", float) or [0.0] * len(tokens)
    return Vocabulary(tokens, types, scores)


def _pair(merge: str) -> tuple[str, str]:
    """Split a merge such as `Ġ t`; the first part may begin with a space where tokens are plain
    text."""
    left, _, right = merge[1:].partition(" ")
    return merge[:1] + left, right


def _end_token_ids(keys: "_Keys", vocabulary: Vocabulary) -> tuple[int, ...]:
    stated = [token_id for key in _END_IDS if (token_id := keys.token_id(key)) is not None]
    whole, ends = (TokenType.CONTROL, TokenType.USER_DEFINED), end_tokens(vocabulary.tokens)
    named = [
        i
        for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if token in ends and kind in whole
    ]
    return tuple(i for i in dict.fromkeys(stated + named) if i < len(vocabulary.tokens))


class _Keys:
    """The `tokenizer.` keys, read with type checks."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.default_ids: Mapping[str, int] = {}

    def get(self, key: str, kind: type[T], default: T) -> T:
        value = self.metadata.get(f"tokenizer.{key}", default)
        if not isinstance(value, kind):
            raise CorruptFile(f"the GGUF file's tokenizer.{key} must be a {kind.__name__}")
        return value

    def list(self, key: str, kind: type[T]) -> list[T]:
        """Return a list of values; empty if the file has no such key."""
        values = self.get(key, list, [])
        if not all(isinstance(value, kind) for value in values):
            raise CorruptFile(f"the GGUF file's tokenizer.{key} must hold {kind.__name__}s")
        return values

    def token_id(self, key: str) -> int | None:
        token_id = self.get(f"ggml.{key}", int, self.default_ids.get(key, -1))
        return token_id if token_id >= 0 else None
