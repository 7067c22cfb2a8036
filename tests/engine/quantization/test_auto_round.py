"""Layers of auto-round, in the layouts of other tools, against the weights that they stand for."""

import pytest

from engine.errors import ModelLoadError
from engine.quantization.registry import detect
from tests.helpers.quantization.awq_checkpoints import quantised as awq
from tests.helpers.quantization.format_layers import assert_multiplies, loaded, random_layer
from tests.helpers.quantization.gptq_checkpoints import Layout
from tests.helpers.quantization.gptq_checkpoints import quantised as gptq
from tests.helpers.quantization.stored_formats import ct_mxfp8, ct_nvfp4, fp8

SHARDS, SIZE = {"q": 64, "k": 32}, 128


def gptq_layer(**options):
    layout = Layout(writes_g_idx=False, **options)
    return lambda weight: gptq(weight, layout)


def config(kind, **changes):
    stated = {"quant_method": "auto-round", "packing_format": kind, "bits": 4, "group_size": 32}
    return stated | {"sym": False, "data_type": "int"} | changes


LAYOUTS = {
    "auto_round:auto_gptq": gptq_layer(),
    "auto_round:gptqmodel": gptq_layer(version="gptq_v2"),
    "auto_round:auto_awq": lambda weight: awq(*weight.shape),
    "auto_round:llm_compressor": ct_nvfp4,
    "auto_round:fp8_static": lambda weight: fp8(weight, "weight_scale", (1, 0)),
}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("method", ["auto-round", "intel/auto-round"])
def test_products_are_those_of_the_dequantised_weight(kind, method):
    tensors, weights = random_layer(LAYOUTS[kind], SHARDS, SIZE)
    changes = {} if "awq" in kind or "gptq" in kind else {"data_type": "fp"}
    assert_multiplies(
        loaded(tensors, weights, config(kind, quant_method=method, **changes)), weights
    )


def test_layers_may_have_bits_of_their_own():
    tensors, weights = random_layer(gptq_layer(sym=True), {"q": 64}, SIZE)
    others, its = random_layer(gptq_layer(bits=8, group_size=64), {"k": 32}, SIZE)
    rules = {
        "a.k": {"bits": 8, "group_size": 64, "sym": False},
        "lm_head": {"bits": 16, "data_type": "float"},
    }
    stated = config("auto_round:auto_gptq", sym=True, extra_config=rules)
    weights |= its
    assert_multiplies(loaded(tensors | others, weights, stated), weights)
    mixed, weights = random_layer(ct_mxfp8, {"q": 64}, SIZE)
    others, its = random_layer(ct_nvfp4, {"k": 32}, SIZE)
    weights |= its
    stated = config("auto_round:llm_compressor", data_type="nv_fp", extra_config=rules)
    assert_multiplies(loaded(mixed | others, weights, stated), weights)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("packing_format", "auto_round:llm_compressor_nvfp4_e5m3"),
        ("packing_format", None),
        ("packing_format", ["auto_round"]),
        ("data_type", "mx_int"),
        ("bits", 6),
        ("bits", None),
        ("group_size", "128"),
        ("extra_config", ["lm_head"]),
        ("extra_config", {"lm_head": 8}),
    ],
)
def test_configurations_that_are_not_supported_are_refused_by_key(key, value):
    with pytest.raises(ModelLoadError, match=rf"quantization_config: {key} is "):
        detect(config("auto_round:auto_gptq") | {key: value}, {})


def test_awq_has_no_bits_by_layer():
    stated = config("auto_round:auto_awq", extra_config={"a.k": {"bits": 8}})
    with pytest.raises(ModelLoadError, match=r"extra_config is .*absent for auto_round:auto_awq"):
        detect(stated, {})
