# ruff: noqa: E501, RUF001
"""Makes tokenizers of every kind for which a text can be bounded or cut, and of some for which it
cannot."""

import random
from collections.abc import Callable

from tokenizers import AddedToken, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import BPE, Unigram, WordPiece

from engine.text.gguf_pre_tokenizers import pre_tokenizer_rule
from engine.text.spm_tokenizer import SpacePrefix, build_spm_tokenizer
from engine.text.vocabulary import TokenType, Vocabulary

SPECIAL = ("<s>", "</s>", "<|end|>")


def byte_level(
    corpus: list[str],
    *,
    rule: str = "gpt-2",
    normalizer: normalizers.Normalizer | None = None,
    alphabet: int = 256,
    tokens: tuple[AddedToken, ...] = (),
) -> RawTokenizer:
    """Make a byte-level BPE whose words are cut as `rule` says. It may lack some bytes, as real
    ones do."""
    raw = RawTokenizer(BPE())
    raw.pre_tokenizer = pre_tokenizer_rule(rule).create()
    if normalizer is not None:
        raw.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())[:alphabet],
        show_progress=False,
    )
    raw.train_from_iterator([*corpus, "    " * 20, "=" * 70, "7" * 9], trainer)
    raw.add_tokens(list(tokens))
    return raw


def sentencepiece(prefix: SpacePrefix, *, has_bytes: bool = True) -> RawTokenizer:
    """Make SentencePiece's BPE over a vocabulary of syllables, words and runs of spaces."""
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789.,\n▁你好")
    words = ["▁the", "▁fox", "the", "fox", "▁th", "th", "he", "▁▁", "▁▁▁▁", "▁▁▁▁▁▁▁▁", "ox", "12"]
    octets = [f"<0x{byte:02X}>" for byte in range(256)] if has_bytes else []
    tokens = ["<unk>", "<s>", "</s>", *octets, *letters, *words]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    types += [TokenType.BYTE] * len(octets)
    types += [TokenType.NORMAL] * (len(letters) + len(words))
    vocabulary = Vocabulary(
        tokens, [int(t) for t in types], [-float(i) for i in range(len(tokens))]
    )
    raw = build_spm_tokenizer(vocabulary, prefix=prefix)
    vocabulary.add_whole_tokens(raw)
    return raw


RULES = (
    "default", "gpt-2", "smollm", "llama3", "dbrx", "qwen2", "qwen35", "tekken", "gpt-4o", "falcon",
    "deepseek-coder", "deepseek-llm", "deepseek-v3", "youtu",
)  # fmt: skip

Build = Callable[[list[str]], RawTokenizer]
KINDS: dict[str, Build] = {
    **{rule: lambda corpus, rule=rule: byte_level(corpus, rule=rule) for rule in RULES},
    "few bytes": lambda corpus: byte_level(corpus, alphabet=150),
    "nfc": lambda corpus: byte_level(corpus, rule="qwen2", normalizer=normalizers.NFC()),
    "nfkc": lambda corpus: byte_level(corpus, normalizer=normalizers.NFKC()),
    "lowercase": lambda corpus: byte_level(corpus, normalizer=normalizers.Lowercase()),
    "swallowing tokens": lambda corpus: byte_level(
        corpus, tokens=(AddedToken("<gap>", lstrip=True, rstrip=True, normalized=False),)
    ),
    "long token": lambda corpus: byte_level(
        corpus, tokens=(AddedToken("<" + "long" * 50 + ">", normalized=False),)
    ),
    "spm none": lambda corpus: sentencepiece("none"),
    "spm first": lambda corpus: sentencepiece("first"),
    "spm every": lambda corpus: sentencepiece("every"),
    "spm unknown": lambda corpus: sentencepiece("every", has_bytes=False),
}


def _wordpiece(corpus: list[str]) -> RawTokenizer:
    raw = RawTokenizer(WordPiece({"[UNK]": 0, "the": 1}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return raw


def _dropping(corpus: list[str]) -> RawTokenizer:
    raw = byte_level(corpus)
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", behavior="removed"), pre_tokenizers.ByteLevel(False)]
    )
    return raw


UNBOUNDED: dict[str, Build] = {
    "wordpiece": _wordpiece,
    "unigram": lambda corpus: RawTokenizer(Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)),
    "dropped spaces": _dropping,
    "stripped": lambda corpus: byte_level(corpus, normalizer=normalizers.Strip()),
    "replaced": lambda corpus: byte_level(corpus, normalizer=normalizers.Replace("aa", "b")),
}

_ATOMS = [
    "a", "the", "fox", "The Quick", "ManagementPlane", "7", "12345678", "\x04", "\x13", "é", "e\u0301",
    "각", "각", "\u1112\u1161\u11ab", "𝐚𝐛", "ﬃ", "İ", "ǖ", "你好", "世", "。", "，", "、", "👍🏽", "\u0301",
    "=", "-" * 9, "=" * 64, ".", ",", "'", "'s", "'LL", "▁", "▁▁▁", "<s>", "<|end|>", "<gap>", "<|en",
    "<" + "long" * 50 + ">", "\u00a0", "\u3000", "\ufeff", "中文", "naïve", "x",
]  # fmt: skip
_GAPS = ["", "", " ", " ", " ", "  ", "   ", "\n", "\n\n", "\t", " \n", "\r\n", "\u2028", " " * 30]


def random_text(rng: random.Random, num_atoms: int) -> str:
    """Draw words, digits, scripts, marks and spaces in any order, sometimes the same again and
    again."""
    atoms = rng.choices(_ATOMS, k=num_atoms)
    if rng.random() < 0.3:
        atoms = rng.choices(rng.choices(_ATOMS, k=2), k=num_atoms)
    gaps = [""] if rng.random() < 0.2 else [" "] if rng.random() < 0.3 else _GAPS
    return "".join(atom + rng.choice(gaps) for atom in atoms)
