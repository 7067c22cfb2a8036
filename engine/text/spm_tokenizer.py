"""SentencePiece BPE, rebuilt from tokens and scores for the `tokenizers` library.

SentencePiece joins the neighbours whose union has the best score; `tokenizers` needs a ranked list
of merges. The list is derived as in transformers' conversion of checkpoints. It is used for GGUF
files of model `llama` and for folders that have only a `tokenizer.model`.
"""

from typing import Literal

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers

from engine.text.vocabulary import TokenType, Vocabulary

SpacePrefix = Literal["none", "first", "every"]
"""Where encoding inserts a space: nowhere, before the text, or also after every special token."""

_SPACE = "▁"
_MERGED = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)


def build_spm_tokenizer(vocabulary: Vocabulary, *, prefix: SpacePrefix) -> RawTokenizer:
    """Build a tokenizer without special tokens; the caller adds them."""
    unknown = vocabulary.of_type((TokenType.UNKNOWN,))
    model = models.BPE(
        vocab={token: i for i, token in enumerate(vocabulary.tokens)},
        merges=_derive_merges(vocabulary),
        unk_token=unknown[0] if unknown else None,
        fuse_unk=True,
        byte_fallback=TokenType.BYTE in vocabulary.types,
    )
    raw = RawTokenizer(model)
    if prefix == "first":
        raw.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="first", split=False)
    else:
        prepend = [normalizers.Prepend(_SPACE)] * (prefix == "every")
        raw.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", _SPACE)])
    _set_decoder(raw, prefix)
    return raw


def set_spaces(raw: RawTokenizer) -> None:
    """Let a tokenizer write spaces as SentencePiece does, without one before the text."""
    raw.normalizer = normalizers.Replace(" ", _SPACE)
    _set_decoder(raw, "none")


def _set_decoder(raw: RawTokenizer, prefix: SpacePrefix) -> None:
    raw.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        + [decoders.Strip(" ", 1, 0)] * (prefix != "none")
    )


def _derive_merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Return every way to make a token from two others, best score first, longer left part
    first."""
    usable = {
        token: score
        for token, kind, score in zip(
            vocabulary.tokens, vocabulary.types, vocabulary.scores, strict=True
        )
        if kind in _MERGED
    }
    merges = [
        (score, cut, token)
        for token, score in usable.items()
        for cut in range(1, len(token))
        if token[:cut] in usable and token[cut:] in usable
    ]
    merges.sort(key=lambda merge: merge[:2], reverse=True)
    return [(token[:cut], token[cut:]) for _, cut, token in merges]
