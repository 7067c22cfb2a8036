"""A CLIP tokenizer whose vocabulary makes one token of every word the model knows.

Byte-pair merges are learned from the word list alone until each word is one token; other text falls
apart into smaller pieces, as in CLIP.
"""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from tools.demo_image_model.captions import vocabulary

MAX_LENGTH = 32
"""Tokens of a prompt with its begin and end tokens; longer prompts are read in chunks."""


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Merges, in order, after which every word is a single symbol."""
    split = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(symbols) > 1 for symbols in split):
        pairs = Counter(pair for symbols in split for pair in pairwise(symbols))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_merge(symbols, best) for symbols in split]
    return merges


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Create the tokenizer's files in `folder` and load them."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = sorted(ByteLevel.alphabet())
    merges = learn_merges(vocabulary())
    tokens = [*symbols, *(f"{s}</w>" for s in symbols), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_LENGTH
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
