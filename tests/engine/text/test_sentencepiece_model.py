"""`tokenizer.model` and GGUF's SentencePiece against SentencePiece itself."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from engine.errors import CorruptFile, EngineError, UnsupportedArchitecture
from engine.text.sentencepiece_model import _read, read_sentencepiece_model
from engine.text.tokenizer import Tokenizer, load_tokenizer

WriteGGUF = Callable[[dict[str, Any]], Path]


@pytest.fixture
def oracle(sentencepiece_folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(
        model_file=str(sentencepiece_folder / "tokenizer.model")
    )


@pytest.fixture
def metadata(sentencepiece_folder: Path) -> dict[str, Any]:
    """The vocabulary as llama.cpp would store it."""
    vocabulary, _, _ = _read((sentencepiece_folder / "tokenizer.model").read_bytes())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.scores": vocabulary.scores,
        "tokenizer.ggml.token_type": vocabulary.types,
    }


@pytest.fixture
def gguf_file(metadata: dict[str, Any], write_gguf: WriteGGUF) -> Path:
    return write_gguf(metadata)


def some_texts(corpus: list[str], nasty_texts: list[str]) -> list[str]:
    alphabet = "ab \t\n01_▁éß日한👍\u0301\u00a0.;(" + "self" * 3
    noise = ["".join(random.choices(alphabet, k=random.randrange(40))) for _ in range(300)]
    # Control tokens written out in a text are not text to us; SentencePiece knows no such thing.
    texts = [*nasty_texts, *random.sample(corpus, 200), *noise]
    return [t for t in texts if not any(token in t for token in ("<s>", "</s>", "<unk>"))]


def test_ids_and_texts_of_sentencepiece(
    sentencepiece_tokenizer: Tokenizer,
    gguf_file: Path,
    oracle: sentencepiece.SentencePieceProcessor,
    corpus: list[str],
    nasty_texts: list[str],
) -> None:
    from_gguf = load_tokenizer(gguf_file)
    for text in some_texts(corpus, nasty_texts):
        if "<|end|>" in text:
            continue  # We put a space behind special tokens, as llama.cpp and transformers do.
        ids = oracle.encode(text)
        for tokenizer in (sentencepiece_tokenizer, from_gguf):
            assert tokenizer.encode(text, add_special_tokens=False) == ids, repr(text)
            assert tokenizer.decode(ids) == oracle.decode(ids) == text.replace("▁", " ")


def test_facts(sentencepiece_tokenizer: Tokenizer, gguf_file: Path) -> None:
    for tokenizer in (sentencepiece_tokenizer, load_tokenizer(gguf_file)):
        assert tokenizer.special_tokens == {
            "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"
        }  # fmt: skip
        assert tokenizer.bos_token_id == 1
        assert tokenizer.vocab_size == 900
    assert load_tokenizer(gguf_file).eos_token_ids == (2, 3)
    assert load_tokenizer(gguf_file).encode("")[:1] == [1]


def test_a_space_follows_special_tokens(gguf_file: Path, sentencepiece_folder: Path) -> None:
    """llama.cpp and Llama 2's own tokenizer add it; those that say `legacy: false` do not."""
    tokenizer = load_tokenizer(gguf_file)
    pieces = [tokenizer.raw.id_to_token(i) for i in tokenizer.encode("self<|end|>self")]
    assert pieces == ["<s>", "▁self", "<|end|>", "▁self"]
    raw, _ = read_sentencepiece_model(sentencepiece_folder / "tokenizer.model", legacy=False)
    assert raw.encode("self<|end|>self").tokens[:2] == ["▁self", "<|end|>"]
    assert not raw.encode("self<|end|>self").tokens[2].startswith("▁")


def test_no_space_prefix(metadata: dict[str, Any], write_gguf: WriteGGUF) -> None:
    metadata |= {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    tokenizer = load_tokenizer(write_gguf(metadata))
    assert tokenizer.raw.encode(" self").tokens == ["▁self"]
    assert tokenizer.decode(tokenizer.encode(" self")) == " self"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram"}, "not of type BPE"),
        ({"model_type": "bpe"}, "normalises text"),
        ({"model_type": "bpe", "normalization_rule_name": "identity"}, "normalises text"),
    ],
)
def test_other_kinds_are_refused(
    tmp_path: Path, corpus: list[str], options: dict[str, Any], message: str
) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=600,
        minloglevel=2,
        **options,
    )
    with pytest.raises(UnsupportedArchitecture, match=message):
        load_tokenizer(tmp_path)


def test_damage_never_escapes_as_another_error(sentencepiece_folder: Path, tmp_path: Path) -> None:
    data = (sentencepiece_folder / "tokenizer.model").read_bytes()
    path = tmp_path / "tokenizer.model"
    for _ in range(60):
        damaged = bytearray(data[: random.randrange(len(data))] if random.random() < 0.3 else data)
        for _ in range(random.randrange(4)):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        path.write_bytes(damaged)
        try:
            read_sentencepiece_model(path, legacy=True)
        except EngineError:
            pass
        except BaseException as error:
            pytest.fail(f"{error!r}")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(CorruptFile):
        load_tokenizer(tmp_path)
