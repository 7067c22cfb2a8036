"""Model folders that somebody made to do harm: each is refused with a reason, in a bounded time.

What is asked here is everything that is read before the weights themselves: which kind of model it
is, its configuration, the headers of its weights, its tokenizer and its chat template.
"""

import json
import os
import random
import shutil
import signal
import struct
from pathlib import Path
from typing import Any

import pytest

from engine.errors import CorruptFile, EngineError, ModelLoadError
from engine.text.chat_template import ChatTemplate
from engine.text.tokenizer import load_tokenizer
from engine.weights.loader import load_model_config, quantization_config, weight_headers
from engine.weights.source import resolve_source
from tests.helpers.models.json_files import change_json

DEEP = "[" * 100_000 + "]" * 100_000
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "tokenizer.json",
    "model.safetensors.index.json",
    "quantize_config.json",
)
REPLACING = ("model.safetensors.index.json", "quantize_config.json")
"""Files that change what the others mean."""
OTHER_FILES = ("chat_template.jinja", "model.safetensors")
TIME_LIMIT_S = 60


@pytest.fixture(autouse=True)
def time_limit():
    """A read that waits for ever fails the test, and does not stop the run."""

    def expire(number, frame):
        raise TimeoutError(f"it took more than {TIME_LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(TIME_LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def original(tiny_llama):
    """An honest model, with every file that may be there."""
    folder = tiny_llama()
    for name in JSON_FILES:
        if not (folder / name).exists() and name not in REPLACING:
            (folder / name).write_text("{}")
    template = folder / "chat_template.jinja"
    if not template.exists():
        template.write_text("{{ messages[0].content }}")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy, to be spoilt."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def read_all(folder: Path) -> None:
    """All that is read before the weights."""
    checkpoint = resolve_source(str(folder), cache_dir=folder, on_progress=print, offline=True)
    weight_headers(checkpoint, load_model_config(checkpoint))
    quantization_config(checkpoint)
    tokenizer = load_tokenizer(checkpoint.path)
    tokenizer.decode(tokenizer.encode("Hello there"))
    if tokenizer.chat_template is not None:
        ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens)


def test_the_honest_one_is_read(folder):
    read_all(folder)


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize(
    "text",
    [
        pytest.param('{"a": ' + DEEP + "}", id="deep"),
        pytest.param(DEEP, id="deep list"),
        pytest.param('{"a": ' + "[" * 500 + "]" * 500 + "}", id="quite deep"),
        pytest.param('["a"]', id="a list"),
        pytest.param("{", id="cut off"),
    ],
)
def test_json_that_is_none_or_too_deep(folder, name, text):
    if name == "chat_template.json":  # the other one wins
        (folder / "chat_template.jinja").unlink()
    (folder / name).write_text(text)
    with pytest.raises(CorruptFile, match=name.replace(".", r"\.")) as caught:
        read_all(folder)
    assert str(folder) not in str(caught.value)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", JSON_FILES + OTHER_FILES)
def test_what_is_no_file_in_a_files_place(folder, name, kind):
    path = folder / name
    path.unlink(missing_ok=True)
    if name == "chat_template.json":  # the other one wins
        (folder / "chat_template.jinja").unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(CorruptFile, match=f"is a {kind} and must be a regular file") as caught:
        read_all(folder)
    assert name in str(caught.value)


def test_deep_headers(folder):
    for header in ('{"__metadata__": ' + DEEP + "}", DEEP, '{"a": ' + DEEP + "}"):
        data = struct.pack("<Q", len(header)) + header.encode()
        (folder / "model.safetensors").write_bytes(data)
        with pytest.raises(CorruptFile, match=r"model\.safetensors"):
            read_all(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 20_000),
        ("num_hidden_layers", 0),
        ("hidden_size", -64),
        ("head_dim", 0),
        ("num_attention_heads", 0),
        ("vocab_size", -1),
        ("max_position_embeddings", 2**31 - 1),
        ("rope_theta", 0),
        ("rope_theta", -1e4),
        ("rope_theta", float("inf")),
        ("rope_theta", float("nan")),
        ("rope_theta", 1e-300),
        ("rope_theta", 1e300),
        ("rope_theta", 10**400),
        ("rope_theta", True),
        ("rope_theta", "1e4"),
        ("rms_norm_eps", float("nan")),
    ],
)
def test_numbers_that_no_model_has(folder, key, value):
    change_json(folder / "config.json", **{"rope_parameters": ..., key: value})
    with pytest.raises(ModelLoadError, match=key):
        read_all(folder)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 1e300},
        {"rope_type": "linear", "factor": 0},
        {"rope_type": "yarn", "factor": 2.0, "beta_fast": 0},
        {"rope_type": "yarn", "factor": 2.0, "beta_slow": -1},
        {"rope_type": "yarn", "factor": 2.0, "attention_factor": float("nan")},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2**30},
        {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.5, "high_freq_factor": 4.0},
        {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": float("inf")},
    ],
)
def test_rotary_scalings_that_no_model_has(folder, scaling):
    change_json(folder / "config.json", rope_parameters={"rope_theta": 1e4, **scaling})
    with pytest.raises(ModelLoadError, match="rope_parameters"):
        read_all(folder)


JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 2**70, 10**400, 1e308, float("nan"), float("inf"), "", "x", "\ud800",
    "\0", "a" * 5000, [], {}, [[]], [None], {"": None}, {"content": 5}, {"content": "\udfff"},
    ["default"], [{"name": [], "template": 1}], {"5": "x", "y": 6}, {"0": {"content": {}}},
)  # fmt: skip


def spoilt(value: Any, dice: random.Random) -> Any:
    """The same with something in it, or next to it, replaced by what does not belong there."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(sorted(value))
        return {**value, key: spoilt(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.9:
        place = dice.randrange(len(value))
        return [*value[:place], spoilt(value[place], dice), *value[place + 1 :]]
    return dice.choice(JUNK)


EXTRA_KEYS = (
    "added_tokens_decoder", "chat_template", "bos_token", "eos_token", "eos_token_id", "legacy",
    "add_bos_token", "rope_scaling", "rope_parameters", "architectures", "quantization_config",
    "layer_types", "sliding_window", "additional_special_tokens", "temperature", "<s>",
)  # fmt: skip


@pytest.mark.parametrize("name", [*JSON_FILES, "the header"])
def test_values_of_other_kinds(folder, name):
    """Whatever is in them, the answer is a model or a reason, never an exception of Python's."""
    dice = random.Random(name)
    path = folder / ("model.safetensors" if name == "the header" else name)
    data = path.read_bytes() if path.exists() else b'{"weight_map": {"a": "model.safetensors"}}'
    tail = b""
    if name == "the header":
        (length,) = struct.unpack("<Q", data[:8])
        data, tail = data[8 : 8 + length], data[8 + length :]
    value = json.loads(data)
    for _ in range(40):
        wrong = spoilt(value, dice)
        if isinstance(wrong, dict) and dice.random() < 0.5:
            wrong = {**wrong, dice.choice(EXTRA_KEYS): dice.choice(JUNK)}
        text = json.dumps(wrong).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + tail if tail else text)
        try:
            read_all(folder)
        except EngineError as error:
            assert str(folder) not in str(error)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} for {text[:400]!r}") from error
