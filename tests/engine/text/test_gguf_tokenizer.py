"""Ids from GGUF vocabularies against llama.cpp's, recorded, and against live libraries."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as RawTokenizer

from engine.errors import CorruptFile, EngineError, UnsupportedArchitecture
from engine.files.gguf_header import read_gguf_header
from engine.text.gguf_pre_tokenizers import _BY_NAME, pre_tokenizer_rule
from engine.text.gguf_tokenizer import gguf_tokenizer_parts
from engine.text.tokenizer import Tokenizer, load_tokenizer
from engine.weights.source import Checkpoint

WriteGGUF = Callable[[dict[str, Any]], Path]

RECORDED = Path(__file__).parents[2] / "data" / "llama_cpp_token_ids.json"
"""What llama.cpp b11434 makes of nasty texts with SmolLM2's vocabulary and each way to cut words.

Left out are combining marks with tekken and gpt-4o, where llama.cpp approximates the models' own
regular expressions and we use them.
"""


@pytest.fixture
def metadata(byte_level: RawTokenizer) -> dict[str, Any]:
    """The tiny byte-level vocabulary as llama.cpp would store it."""
    model = json.loads(byte_level.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    types = [1] * len(tokens)
    types[:3] = 3, 3, 4
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": "{{ bos_token }}",
    }


def test_equals_the_tokenizer_it_was_made_of(
    metadata: dict[str, Any],
    byte_level: RawTokenizer,
    write_gguf: WriteGGUF,
    nasty_texts: list[str],
) -> None:
    tokenizer = load_tokenizer(write_gguf(metadata))
    for text in nasty_texts:
        assert tokenizer.encode(text) == byte_level.encode(text).ids


def test_facts(metadata: dict[str, Any], write_gguf: WriteGGUF) -> None:
    metadata["tokenizer.ggml.tokens"].append("<|mark|>")
    metadata["tokenizer.ggml.token_type"].append(4)
    tokenizer = load_tokenizer(write_gguf(metadata))
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (0, (1, 2))
    assert tokenizer.vocab_size == len(metadata["tokenizer.ggml.tokens"])
    assert tokenizer.chat_template == "{{ bos_token }}"
    # Control tokens are left out of the text, user-defined ones are not, unless they end it.
    assert tokenizer.decode(tokenizer.encode("<s>a<|mark|><|end|></s>")) == "a<|mark|>"


@pytest.mark.parametrize(
    ("keys", "ids"),
    [
        ({}, []),
        ({"add_bos_token": True}, [0]),
        ({"add_eos_token": True}, [1]),
        ({"add_bos_token": True, "add_eos_token": True}, [0, 1]),
        ({"pre": "llama-bpe"}, [0]),
        ({"pre": "llama-bpe", "add_bos_token": False}, []),
        ({"add_bos_token": True, "bos_token_id": 2**31}, []),
    ],
)
def test_boundary_tokens(
    metadata: dict[str, Any], write_gguf: WriteGGUF, keys: dict[str, Any], ids: list[int]
) -> None:
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    tokenizer = load_tokenizer(write_gguf(metadata))
    assert tokenizer.encode("") == ids
    assert tokenizer.encode("", add_special_tokens=False) == []


def test_every_token_that_ends_an_answer(metadata: dict[str, Any]) -> None:
    """Llama 3 files often state only one of `<|eot_id|>` and `<|end_of_text|>`."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    size = len(tokens)
    tokens += ["<|eot_id|>", "<|im_end|>", "<|endoftext|>", "<|other|>"]
    types += [3, 4, 1, 3]
    metadata["tokenizer.ggml.eot_token_id"] = size + 3
    parts = gguf_tokenizer_parts(metadata)
    assert parts.eos_token_ids == (1, size + 3, 2, size, size + 1)
    tokenizer = Tokenizer(parts)
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>b")) == "ab"


def test_messages_of_gpt_oss_end_without_ending_an_answer(metadata: dict[str, Any]) -> None:
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert "<|end|>" in tokens
    assert gguf_tokenizer_parts(metadata).eos_token_ids == (1, 2)
    size = len(tokens)
    tokens += ["<|return|>", "<|call|>"]
    types += [3, 3]
    assert gguf_tokenizer_parts(metadata).eos_token_ids == (1, size, size + 1)


def test_gemma_4_merges_text_with_marked_spaces() -> None:
    """Ids by the rules of llama.cpp's `LLAMA_VOCAB_PRE_TYPE_GEMMA4`: bytes stand for characters
    that are no tokens, and `</s>` is text."""
    whole = ["<pad>", "<bos>", "<|tool_response>", "<unk>", "</s>"]
    pieces = ["▁", "a", "b", "ab", "▁ab", "\n", "\n\n", "<0xC3>", "<0xA4>"]
    metadata = {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": whole + pieces,
        "tokenizer.ggml.token_type": [3, 3, 3, 2, 1, *[1] * 7, 6, 6],
        "tokenizer.ggml.merges": ["a b", "▁ ab", "\n \n"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
    }
    parts = gguf_tokenizer_parts(metadata)
    tokenizer = Tokenizer(parts)
    assert tokenizer.encode("ab ab\n\n\nä b") == [1, 8, 9, 11, 10, 12, 13, 5, 7]
    assert tokenizer.decode([8, 9, 11, 10, 12, 13, 5, 7]) == "ab ab\n\n\nä b"
    assert parts.eos_token_ids == (2,)


def test_older_files(metadata: dict[str, Any]) -> None:
    """They have no token types, no pre-tokenizer, and tokens without text."""
    del metadata["tokenizer.ggml.token_type"], metadata["tokenizer.ggml.pre"]
    metadata["tokenizer.ggml.tokens"] += ["", ""]
    tokenizer = Tokenizer(gguf_tokenizer_parts(metadata))
    text = "x = 12345 ** 2;"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "rwkv"}, UnsupportedArchitecture, "'rwkv'"),
        ({"model": None}, UnsupportedArchitecture, "'none'"),
        ({"model": 3}, CorruptFile, "model must be a str"),
        ({"pre": "from-the-future"}, UnsupportedArchitecture, "'from-the-future'.*smollm"),
        ({"tokens": None}, CorruptFile, "0 tokens"),
        ({"tokens": ["a", 1]}, CorruptFile, "tokens"),
        ({"tokens": ["a", "b", "a"], "token_type": None}, CorruptFile, "twice"),
        ({"token_type": [1]}, CorruptFile, "1 types"),
        ({"merges": ["nowhere to-be-found"]}, CorruptFile, "merges"),
        ({"merges": ["x"]}, CorruptFile, "merges"),
        ({"eos_token_id": "</s>"}, CorruptFile, "eos_token_id"),
        ({"add_bos_token": 1}, CorruptFile, "add_bos_token"),
    ],
)
def test_says_what_is_wrong(
    metadata: dict[str, Any], change: dict[str, Any], error: type[EngineError], message: str
) -> None:
    for key, value in change.items():
        if value is None:
            del metadata[f"tokenizer.ggml.{key}"]
        else:
            metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(error, match=message):
        gguf_tokenizer_parts(metadata)


@pytest.mark.parametrize("name", _BY_NAME)
def test_every_rule_cuts_without_losing_anything(name: str, nasty_texts: list[str]) -> None:
    cutter = pre_tokenizer_rule(name).create()
    for text in nasty_texts:
        spans = [span for _, span in cutter.pre_tokenize_str(text)]
        assert "".join(text[start:end] for start, end in spans) == text


@pytest.mark.slow
@pytest.mark.parametrize("name", json.loads(RECORDED.read_text("utf-8"))["token_ids"])
def test_ids_of_llama_cpp(smollm2_checkpoint: Checkpoint, name: str) -> None:
    recorded = json.loads(RECORDED.read_text("utf-8"))
    metadata = read_gguf_header(smollm2_checkpoint.path).metadata | {"tokenizer.ggml.pre": name}
    tokenizer = Tokenizer(gguf_tokenizer_parts(metadata))
    for text, ids in zip(recorded["texts"], recorded["token_ids"][name], strict=True):
        assert tokenizer.encode(text) == ids, repr(text)


@pytest.mark.slow
def test_ids_of_transformers(smollm2: Tokenizer, smollm2_checkpoint: Checkpoint) -> None:
    """Digits are left out: transformers does not cut them as SmolLM2's training did."""
    from transformers import AutoTokenizer

    path = smollm2_checkpoint.path
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    texts = json.loads(RECORDED.read_text("utf-8"))["texts"]
    without_digits = ["".join(c for c in text if not c.isnumeric()) for text in texts]
    for text in without_digits:
        assert smollm2.encode(text) == theirs.encode(text), repr(text)
    assert smollm2.special_tokens == theirs.special_tokens_map
    assert smollm2.chat_template == theirs.chat_template
    assert smollm2.bos_token_id == theirs.bos_token_id
    assert theirs.eos_token_id in smollm2.eos_token_ids
    assert [smollm2.raw.id_to_token(i) for i in smollm2.encode(" 2024")] == ["Ġ", *"2024"]
