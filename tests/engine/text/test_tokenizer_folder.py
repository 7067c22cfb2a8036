"""Checkpoint folders, in all the ways in which they say the same, against transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import processors

from engine.errors import CorruptFile, EngineError, ModelNotFound
from engine.text.tokenizer import load_tokenizer

WriteFolder = Callable[..., Path]

CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
PAD = {
    "content": "<pad>", "special": True, "normalized": False, "lstrip": False, "rstrip": False,
    "single_word": False,
}  # fmt: skip
TYPED = {"__type": "AddedToken", **PAD, "content": "</s>"}
"""A token as transformers wrote it before version 4.33."""


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"add_bos_token": True},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False, "add_eos_token": False},
        {"add_eos_token": True, "add_bos_token": True, "bos_token": None},
        {"unk_token": "<|end|>", "pad_token": TYPED},
        {"pad_token": "<pad>", "added_tokens_decoder": {"600": PAD}},
        {"additional_special_tokens": ["<|end|>"]},
    ],
)
def test_equals_transformers(
    write_folder: WriteFolder,
    byte_level: RawTokenizer,
    nasty_texts: list[str],
    extra: dict[str, Any],
    adds_bos: bool,
) -> None:
    from transformers import AutoTokenizer

    if adds_bos:
        byte_level.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    folder = write_folder(byte_level, tokenizer_config=CONFIG | extra)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in [*nasty_texts, "a<pad>b"]:
        for add in (True, False):
            assert ours.encode(text, add_special_tokens=add) == theirs.encode(
                text, add_special_tokens=add
            )
        ids = ours.encode(text)
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(
                ids, skip_special_tokens=skip
            )
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.vocab_size == len(theirs)


def test_older_special_tokens_map(write_folder: WriteFolder) -> None:
    folder = write_folder(
        special_tokens_map={"bos_token": {"content": "<s>"}, "eos_token": "<|end|>"},
        tokenizer_config={"eos_token": "</s>", "pad_token": None},
    )
    assert load_tokenizer(folder).special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({}, ()),
        ({"tokenizer_config": CONFIG}, (1,)),
        ({"config": {"eos_token_id": 5}}, (5,)),
        ({"config": {"eos_token_id": 5}, "generation_config": {"eos_token_id": [7, 8]}}, (7, 8)),
        ({"tokenizer_config": CONFIG, "generation_config": {"eos_token_id": [7, 1]}}, (7, 1)),
        ({"tokenizer_config": CONFIG, "generation_config": {"eos_token_id": 9}}, (9, 1)),
        ({"generation_config": {"eos_token_id": [None, True, -1, "x", 3]}}, (3,)),
    ],
)
def test_end_of_sequence(
    write_folder: WriteFolder, files: dict[str, Any], ids: tuple[int, ...]
) -> None:
    assert load_tokenizer(write_folder(**files)).eos_token_ids == ids


def named(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "template": template} for name, template in pairs]


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({}, None),
        ({"tokenizer_config": {"chat_template": "one"}}, "one"),
        ({"tokenizer_config": {"chat_template": None}}, None),
        ({"chat_template": {"chat_template": "two"}}, "two"),
        (
            {"tokenizer_config": {"chat_template": named(("tool_use", "t"), ("default", "d"))}},
            "{% if tools %}t{% else %}d{% endif %}",
        ),
        ({"tokenizer_config": {"chat_template": named(("rag", "r"))}}, "r"),
        ({"tokenizer_config": {"chat_template": named(("rag", "r"), ("tool_use", "t"))}}, None),
        ({"tokenizer_config": {"chat_template": []}}, None),
    ],
)
def test_chat_template(
    write_folder: WriteFolder, files: dict[str, Any], template: str | None
) -> None:
    folder = write_folder(**files)
    assert load_tokenizer(folder).chat_template == template
    (folder / "chat_template.jinja").write_text("from the file", "utf-8")
    assert load_tokenizer(folder).chat_template == "from the file"


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("tokenizer.json", "{", CorruptFile, "tokenizer.json cannot be read"),
        ("tokenizer.json", "{}", CorruptFile, "tokenizer.json cannot be read"),
        ("tokenizer_config.json", "{", CorruptFile, "tokenizer_config.json is not valid JSON"),
        ("tokenizer_config.json", "[]", CorruptFile, "is not a JSON object"),
        ("generation_config.json", "3", CorruptFile, "generation_config.json"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', CorruptFile, "added tokens"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', CorruptFile, "added tok"),
        ("added_tokens.json", '{"x": null}', CorruptFile, "added tokens"),
        ("tokenizer_config.json", '{"chat_template": [3]}', CorruptFile, "chat_template"),
        ("chat_template.jinja", b"\xff", CorruptFile, "chat_template.jinja"),
    ],
)
def test_damaged_files(
    write_folder: WriteFolder,
    name: str,
    content: str | bytes,
    error: type[EngineError],
    message: str,
) -> None:
    folder = write_folder()
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=message) as caught:
        load_tokenizer(folder)
    assert str(folder) not in str(caught.value)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_added_tokens_of_a_sentencepiece_folder(sentencepiece_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(
        (sentencepiece_folder / "tokenizer.model").read_bytes()
    )
    (tmp_path / "tokenizer_config.json").write_text(
        '{"added_tokens_decoder": {"900": {"content": "<new>", "special": true},'
        ' "950": {"content": "<no place>"}}, "add_bos_token": true, "pad_token": "<new>"}'
    )
    (tmp_path / "added_tokens.json").write_text('{"<newer>": 901, "<new>": 900}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("<new>a<newer>")[:2] == [1, 900]
    assert tokenizer.encode("<new>a<newer>")[-1] == 901
    assert tokenizer.vocab_size == 902
    assert tokenizer.decode([1, 900]) == ""
    assert tokenizer.eos_token_ids == (2,)
