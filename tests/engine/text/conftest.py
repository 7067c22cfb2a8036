"""Tokenizers for tests: two tiny ones made on the spot and the real SmolLM2."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from engine.text.tokenizer import Tokenizer, load_tokenizer
from engine.text.tokenizer_parts import TokenizerParts
from engine.weights.source import Checkpoint

WriteGGUF = Callable[..., Path]
WriteFolder = Callable[..., Path]

_NASTY = [
    "", " ", "   ", "\n", "\r\n\r\n", " \t x", "a", "aaaaaaaaaaaaaaaa", "  lead and trail  ",
    "don't I'LL 'tis", "0123456789 3.14 1,000 ½ ²", "def f(x):\n\treturn x  # why\n\n\n  pass",
    "日本語、中文。한국어", "नमस्ते עולם مرحبا", "👍🏽 👨‍👩‍👧 🇩🇪", "e\u0301 é ß ﬁ İ",
    "\u00a0\u3000\u200b\ufeff", "\x00\x01\x7f", "\ufffd broken", "<s>", "x<|end|>y </s>", "<|en",
    "<0x41>", "▁ ▁▁", "line\u2028sep", bytes(range(128)).decode(),
    bytes(range(256)).decode(errors="replace"),
]  # fmt: skip


@pytest.fixture(scope="session")
def nasty_texts() -> list[str]:
    return list(_NASTY)


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """Code and prose, with runs of spaces, and some other scripts."""
    return [*Path(argparse.__file__).read_text("utf-8").splitlines()[:1500], *_NASTY[9:16] * 5]


@pytest.fixture(scope="session")
def byte_level_json(corpus: list[str]) -> str:
    """Byte-level BPE with 600 tokens; every byte is one."""
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(corpus, trainer)
    return raw.to_str()


@pytest.fixture
def byte_level(byte_level_json: str) -> RawTokenizer:
    """Fresh each time, as it can be changed."""
    return RawTokenizer.from_str(byte_level_json)


@pytest.fixture
def byte_level_tokenizer(byte_level: RawTokenizer) -> Tokenizer:
    return Tokenizer(TokenizerParts(raw=byte_level, special_tokens={"bos_token": "<s>"}))


@pytest.fixture(scope="session")
def sentencepiece_folder(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but a `tokenizer.model`, of Llama's kind."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=900,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["<|end|>"],
        character_coverage=0.99,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    return folder


@pytest.fixture(scope="session")
def sentencepiece_tokenizer(sentencepiece_folder: Path) -> Tokenizer:
    return load_tokenizer(sentencepiece_folder)


@pytest.fixture(scope="session")
def smollm2(smollm2_checkpoint: Checkpoint) -> Tokenizer:
    return load_tokenizer(smollm2_checkpoint.path)


@pytest.fixture
def write_gguf(tmp_path: Path) -> WriteGGUF:
    """`write_gguf({"tokenizer.ggml.model": ...})` → a file with this metadata and no tensors."""

    def write(metadata: dict[str, Any]) -> Path:
        path = tmp_path / "written.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        add = {
            bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string,
            list: writer.add_array,
        }  # fmt: skip
        for key, value in metadata.items():
            add[type(value)](key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def write_folder(tmp_path: Path, byte_level: RawTokenizer) -> WriteFolder:
    """`write_folder(tokenizer_config={...})` → a folder with tokenizer.json and these files."""

    def write(raw: RawTokenizer | None = byte_level, **files: Any) -> Path:
        folder = tmp_path / "folder"
        folder.mkdir()
        if raw is not None:
            raw.save(str(folder / "tokenizer.json"))
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
        return folder

    return write
