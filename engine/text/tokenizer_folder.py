"""A tokenizer from a checkpoint folder in Hugging Face's layout.

`tokenizer.json` holds the tokenizer itself; its settings are spread over `tokenizer_config.json`,
`special_tokens_map.json`, `generation_config.json`, `config.json` and `chat_template.jinja`, and
not every folder has all of them.
"""

import io
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RawTokenizer

from engine.errors import CorruptFile, ModelNotFound
from engine.files.checkpoint_files import check_regular, read_bounded, read_optional_json
from engine.text.sentencepiece_model import read_sentencepiece_model
from engine.text.tokenizer_parts import (
    TokenizerParts,
    mark_special,
    set_boundary_tokens,
    with_tool_template,
)

_SPECIAL_NAMES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
_MAX_TOKENIZER_BYTES = 512 << 20
_MAX_TEMPLATE_BYTES = 4 << 20
_FLAGS = ("lstrip", "rstrip", "single_word", "special")
"""Flags of added tokens. `normalized` is left out, because SentencePiece's normaliser would put a
space before the token's own text."""


def read_tokenizer_folder(folder: Path) -> TokenizerParts:
    """Read a tokenizer from a folder.

    Raises:
        ModelNotFound: the folder has no tokenizer that can be read.
        UnsupportedArchitecture: the kind of tokenizer is not supported; the message names it.
        CorruptFile: a file is damaged.
    """
    config = read_optional_json(folder / "tokenizer_config.json")
    named = read_optional_json(folder / "special_tokens_map.json") | config
    stated = {name: _content(named.get(name)) for name in _SPECIAL_NAMES}
    raw, special_tokens = _read_raw(folder, config)
    special_tokens |= {name: token for name, token in stated.items() if token is not None}
    _add_configured_tokens(raw, _pairs(config.get("added_tokens_decoder") or {}))
    older = read_optional_json(folder / "added_tokens.json")
    _add_configured_tokens(raw, [(i, token) for token, i in older.items()])
    mark_special(raw, _not_yet_special(raw, list(special_tokens.values())))
    if not (folder / "tokenizer.json").is_file():
        _set_boundary_tokens(raw, config, special_tokens)
    return TokenizerParts(
        raw=raw,
        special_tokens=special_tokens,
        eos_token_ids=_eos_token_ids(folder, raw, special_tokens),
        chat_template=_chat_template(folder, config),
    )


def _read_raw(folder: Path, config: dict[str, Any]) -> tuple[RawTokenizer, dict[str, str]]:
    """Return the tokenizer and the special tokens that it names itself."""
    fast, sentencepiece = folder / "tokenizer.json", folder / "tokenizer.model"
    if fast.exists():
        check_regular(fast, _MAX_TOKENIZER_BYTES)
        try:
            return RawTokenizer.from_file(str(fast)), {}
        except Exception as error:  # the library raises this very class
            raise CorruptFile(f"tokenizer.json cannot be read: {error}") from error
    if sentencepiece.exists():
        return read_sentencepiece_model(sentencepiece, legacy=config.get("legacy") is not False)
    raise ModelNotFound(
        "the model's folder has no tokenizer.json; create it with transformers: "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    )


def _set_boundary_tokens(
    raw: RawTokenizer, config: dict[str, Any], special_tokens: dict[str, str]
) -> None:
    """Set the boundary tokens of a tokenizer.model. A tokenizer.json has the right ones, whatever
    the flags say."""
    adds_bos = config.get("add_bos_token", True)
    adds_eos = config.get("add_eos_token", False)
    set_boundary_tokens(
        raw,
        special_tokens.get("bos_token") if adds_bos else None,
        special_tokens.get("eos_token") if adds_eos else None,
    )


def _pairs(entries: Any) -> list[tuple[Any, Any]]:
    if not isinstance(entries, dict):
        raise CorruptFile("the folder's list of added tokens is damaged; fetch the model again")
    return list(entries.items())


def _add_configured_tokens(raw: RawTokenizer, entries: list[tuple[Any, Any]]) -> None:
    """Add tokens with their ids. A tokenizer.json has them already, a tokenizer.model lacks
    some."""
    known = raw.get_added_tokens_decoder()
    try:
        ordered = sorted(((int(i), entry) for i, entry in entries), key=lambda e: e[0])
    except (TypeError, ValueError, OverflowError) as error:
        raise CorruptFile(
            "the folder's list of added tokens is damaged; fetch the model again"
        ) from error
    for token_id, entry in ordered:
        content = _content(entry)
        if content is not None and token_id not in known and _has_place(raw, token_id, content):
            has_flags = isinstance(entry, dict)
            flags = {name: bool(entry[name]) for name in _FLAGS if has_flags and name in entry}
            raw.add_tokens([AddedToken(content, normalized=False, **flags)])


def _has_place(raw: RawTokenizer, token_id: int, content: str) -> bool:
    """Whether the token has this id in the vocabulary, or would get it as the next one."""
    known_id = raw.token_to_id(content)
    return token_id == (raw.get_vocab_size() if known_id is None else known_id)


def _not_yet_special(raw: RawTokenizer, tokens: list[str]) -> list[str]:
    special = {t.content for t in raw.get_added_tokens_decoder().values() if t.special}
    return [t for t in dict.fromkeys(tokens) if t not in special and raw.token_to_id(t) is not None]


def _eos_token_ids(
    folder: Path, raw: RawTokenizer, special_tokens: dict[str, str]
) -> tuple[int, ...]:
    """Return the ids in generation_config.json (otherwise config.json), and the tokenizer's own."""
    stated: Any = None
    for name in ("generation_config.json", "config.json"):
        stated = read_optional_json(folder / name).get("eos_token_id") if stated is None else stated
    ids = list(stated) if isinstance(stated, list) else [stated]
    eos = special_tokens.get("eos_token")
    ids.append(raw.token_to_id(eos) if eos is not None else None)
    return tuple(dict.fromkeys(i for i in ids if type(i) is int and i >= 0))


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """Return the chat template. A file of its own comes first; of several named templates the one
    called `default`, with `tool_use` where there are tools."""
    try:
        source = read_bounded(folder / "chat_template.jinja", _MAX_TEMPLATE_BYTES).decode()
        return io.StringIO(source, newline=None).read()  # any end of line, as files are read
    except FileNotFoundError:
        pass
    except UnicodeDecodeError as error:
        raise CorruptFile("chat_template.jinja is not UTF-8 text; fetch it again") from error
    template = read_optional_json(folder / "chat_template.json").get("chat_template")
    template = config.get("chat_template") if template is None else template
    if isinstance(template, list):
        template = _default_template(template)
    return template if isinstance(template, str) else None


def _default_template(templates: list[Any]) -> str | None:
    try:
        named = {entry["name"]: entry["template"] for entry in templates}
    except (TypeError, KeyError) as error:
        raise CorruptFile(
            "tokenizer_config.json: chat_template is damaged; fetch it again"
        ) from error
    template = named.get("default", next(iter(named.values())) if len(named) == 1 else None)
    for_tools = named.get("tool_use")
    if "default" in named and isinstance(template, str) and isinstance(for_tools, str):
        return with_tool_template(template, for_tools)
    return template


def _content(value: Any) -> str | None:
    """Return the text of a token, which is written as its text or as an object with flags."""
    value = value.get("content") if isinstance(value, dict) else value
    if not isinstance(value, str) or not value:
        return None
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise CorruptFile(
            "a special or added token is not valid Unicode; fetch the model again"
        ) from error
    return value
