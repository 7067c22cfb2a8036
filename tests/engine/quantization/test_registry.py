"""The table of formats, and how a checkpoint's is told."""

import importlib
from typing import get_args

import pytest

from engine.contract.image_settings import ImageQuantization
from engine.contract.text_settings import Quantization
from engine.quantization.format import LoadFormat, StoredFormat, TensorHeader
from engine.quantization.formats import FORMATS
from engine.quantization.gguf import GgufFormat
from engine.quantization.registry import detect, load_format, stored_format
from kernels import GGUFType


def class_of(facts):
    module, _, name = facts.target.partition(":")
    return getattr(importlib.import_module(module), name)


def test_settings_name_every_format_and_no_other():
    text, images = set(get_args(Quantization)), set(get_args(ImageQuantization))
    assert text | images == {*FORMATS, "auto", "none"}
    made = {name for name, facts in FORMATS.items() if facts.stored_as is None}
    assert images - {"none"} <= made


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_of_the_classes_that_they_name(name):
    facts = FORMATS[name]
    if facts.stored_as is None:
        assert issubclass(class_of(facts), LoadFormat)
        assert not facts.kept_by_auto_on
        assert load_format(name).method_for(64, 64) is not None
    else:
        assert issubclass(class_of(facts), StoredFormat)
        assert FORMATS[facts.stored_as].stored_as == facts.stored_as
        assert facts.described


def test_gguf_is_told_by_the_types_of_matrices():
    headers = {
        "a.weight": TensorHeader((32, 64), "Q4_0"),
        "b.weight": TensorHeader((32, 64), "F16"),
        "c.weight": TensorHeader((64,), "Q8_0"),
    }
    name, found = detect({}, headers)
    assert (name, type(found)) == ("gguf", GgufFormat)
    (layer,) = found.layers(headers).items()
    assert layer[0] == "a"
    assert layer[1].method.quant_type is GGUFType.Q4_0
    assert layer[1].num_bytes(2) == 32 * 64 * 4.5 / 8
    integers = stored_format("gguf-int8", {}, headers).layers(headers)["a"].method
    assert integers.int8_activations
    assert not layer[1].method.int8_activations
    assert detect({}, {"b.weight": headers["b.weight"]}) is None
