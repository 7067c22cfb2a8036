"""Layers of bitsandbytes, compressed-tensors and FP8 against the weights that they stand for."""

import json
import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from engine.errors import ModelLoadError
from engine.models.forward_context import NO_CONTEXT
from engine.models.layers.parallel import TensorParallel
from engine.quantization.int4_groups import GroupPanels, takes_panels
from engine.quantization.method import LinearPart
from engine.quantization.plain import UnpackingMethod, UnquantizedMethod
from engine.quantization.registry import detect, side_files
from kernels.linear_panels import cases
from tests.helpers.quantization.format_layers import (
    assert_multiplies,
    assert_product,
    assert_rows_alike,
    filled,
    headers_of,
    layers_of,
    loaded,
    random_layer,
)
from tests.helpers.quantization.stored_formats import (
    HQQ,
    VARIETIES,
    ct_config,
    ct_ordered,
    ct_packed,
    hqq,
)

SHARDS = {"q": 96, "k": 32, "v": 32}
SIZE = 192
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
needs_panels = pytest.mark.skipif(not takes_panels(), reason="no C++ compiler")


@pytest.fixture(params=VARIETIES)
def variety(request):
    return VARIETIES[request.param]


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_those_of_the_dequantised_weight(variety, dtype):
    tensors, weights = random_layer(variety.quantise, SHARDS, SIZE, bias=True)
    layer = loaded(tensors, weights, variety.config, dtype)
    assert len(layer._parts) == 1  # One product for all shards.
    weight = torch.cat(list(weights.values()))
    assert_product(layer, tensors, weight, dtype, cases.TOLERANCE[dtype])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_products_without_panels(variety, device, monkeypatch):
    """Panels are missing on a GPU, and without a C++ compiler."""
    for module in (
        "four_bit_blocks",
        "byte_groups",
        "fp8_blocks",
        "int4_groups",
        "float4_groups",
        "hqq",
    ):
        monkeypatch.setattr(f"engine.quantization.{module}.takes_panels", lambda: False)
    tensors, weights = random_layer(variety.quantise, SHARDS, SIZE, bias=True)
    methods = {name: one.method for name, one in layers_of(tensors, variety.config, device).items()}
    layer = filled(tensors, weights, methods)
    x = torch.randn(3, SIZE)
    bias = torch.cat([tensors[f"a.{name}.bias"] for name in weights])
    expected = x @ torch.cat(list(weights.values())).T + bias
    torch.testing.assert_close(layer(x, NO_CONTEXT), expected, atol=1e-4, rtol=0)


@needs_panels
def test_a_row_has_the_same_bits_in_any_batch(variety):
    tensors, weights = random_layer(variety.quantise, SHARDS, SIZE)
    assert_rows_alike(lambda dtype: loaded(tensors, weights, variety.config, dtype), SIZE)


@needs_panels
def test_memory_is_what_is_stated(variety):
    tensors, weights = random_layer(variety.quantise, SHARDS, SIZE)
    layers = layers_of(tensors, variety.config)
    ((_, state),) = loaded(tensors, weights, variety.config)._parts
    assert isinstance(state, GroupPanels)
    numbers = sum(weight.numel() for weight in weights.values())
    assert state.state.panels.data.nbytes == numbers * variety.bits / 8
    assert sum(one.num_bytes(2) for one in layers.values()) == numbers * variety.bits / 8
    for layer in layers.values():
        assert layer.method.bits_per_weight(2) == pytest.approx(variety.bits)


def test_what_is_unpacked_equals_what_it_stands_for(variety):
    tensors, weights = random_layer(variety.quantise, SHARDS, SIZE)
    plain = UnquantizedMethod()
    methods = {
        name: UnpackingMethod(one.method, plain)
        for name, one in layers_of(tensors, variety.config).items()
    }
    found = filled(tensors, weights, methods)
    # Each row takes one input's weights out, exactly.
    rows = found(torch.eye(SIZE), NO_CONTEXT).T
    torch.testing.assert_close(rows, torch.cat(list(weights.values())), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("size", [40, 200])
def test_sizes_that_panels_do_not_take(variety, size):
    """Rows of which 32 neighbours do not divide."""
    made = variety.quantise(torch.zeros(8, 32))[0]
    has_exponents = "weight_scale" in made and made["weight_scale"].dtype == torch.uint8
    has_groups = made.keys() & {"weight_packed", "blocks"} and variety.bits < 8
    if has_exponents or has_groups or "W_q" in made:
        pytest.skip("its groups of 32 divide no such rows")
    tensors, weights = random_layer(variety.quantise, {"q": 24}, size)
    assert_multiplies(loaded(tensors, weights, variety.config), weights)


def test_a_layer_of_one_output(variety):
    tensors, weights = random_layer(variety.quantise, {"q": 1}, 64)
    assert_multiplies(loaded(tensors, weights, variety.config), weights)


def test_a_tensor_that_is_not_there_is_named(variety):
    tensors, weights = random_layer(variety.quantise, {"q": 32}, 64)
    unused = ("input_scale", "output_scale", "input_global_scale", "weight_format")
    if variety.bits < 9:
        unused += ("zero_point",)  # of symmetric codes
    used = [kind for kind in tensors if not kind.endswith(unused)]
    for name in used:
        rest = {other: one for other, one in tensors.items() if other != name}
        with pytest.raises(ModelLoadError, match=r"a\.q"):
            loaded(rest, weights, variety.config)


def test_damage_is_refused_or_changes_nothing(variety):
    """Any tensor cut, lengthened, retyped, or filled with what is no number."""
    tensors, weights = random_layer(variety.quantise, {"q": 32}, 64)
    spoilers = {
        "cut": lambda t: t.flatten()[:-1].contiguous(),
        "longer": lambda t: torch.cat([t.flatten(), t.flatten()[:1]]),
        "none": lambda t: t.flatten()[:0],
        "type": lambda t: t.to(torch.float16) if t.dtype == torch.float32 else t.to(torch.float32),
        "no numbers": lambda t: torch.full(t.shape, float("nan")) if t.dim() < 2 else t,
        "nan": lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else t,
        "inf": lambda t: torch.full_like(t, float("inf")) if t.dtype == torch.float32 else t,
        "ones": lambda t: torch.full_like(t, 1),
    }
    for name, tensor in tensors.items():
        for spoil in spoilers.values():
            spoilt = tensors | {name: spoil(tensor)}
            try:
                layer = loaded(spoilt, weights, variety.config, may_have_others=True)
            except ModelLoadError as error:
                assert "a.q" in str(error)
            else:
                assert layer(torch.randn(2, 64), NO_CONTEXT).isfinite().all()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_weight_without_numbers_is_refused_by_its_header(variety, device):
    tensors, _ = random_layer(variety.quantise, {"q": 32}, 64)
    ends = (".weight", ".weight_packed", ".blocks", "_qdata", ".weight._data", ".W_q")
    [name] = [name for name in tensors if name.endswith(ends)]
    for cut in (tensors[name][:0], tensors[name][:, :0]):
        with pytest.raises(ModelLoadError, match=r"a\.q"):
            layers = layers_of(tensors | {name: cut}, variety.config, device)
            sum(layer.num_bytes(2) for layer in layers.values())


def test_mxfp4_is_unpacked_as_by_transformers():
    blocks = torch.randint(0, 256, (3, 24, 5, 16), dtype=torch.uint8)
    scales = torch.randint(1, 254, (3, 24, 5), dtype=torch.uint8)
    theirs = convert_moe_packed_tensors(blocks, scales)
    for dtype in (torch.bfloat16, torch.float32):  # which both hold such numbers exactly
        for number, expected in enumerate(theirs.mT.to(dtype)):
            tensors = {"a.q.blocks": blocks[number], "a.q.scales": scales[number]}
            (layer,) = layers_of(tensors, {"quant_method": "mxfp4"}).values()
            part = LinearPart(
                names=("a.q",),
                in_features=160,
                out_features=(24,),
                has_bias=False,
                dtype=dtype,
                device=torch.device("cpu"),
            )
            for name, tensor in tensors.items():
                part.take(0, name.rpartition(".")[2], tensor)
            assert torch.equal(layer.method.dequantised(part), expected)


def test_an_mxfp4_scale_that_is_no_number_is_refused():
    tensors, weights = random_layer(VARIETIES["MXFP4"].quantise, {"q": 32}, 64)
    tensors["a.q.scales"][3, 1] = 255
    with pytest.raises(ModelLoadError, match=r"a\.q\.scales"):
        loaded(tensors, weights, VARIETIES["MXFP4"].config)


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that is computed within it."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.most = max(self.most, result.numel())
        return result


STATE = "a.q.weight.quant_state.bitsandbytes__nf4"


def nested_blocks(**changes):
    """A layer of bitsandbytes with changes of what it states."""
    tensors, weights = random_layer(VARIETIES["bnb nf4, nested"].quantise, {"q": 32}, 64)
    state = json.loads(tensors[STATE].numpy().tobytes()) | changes
    tensors[STATE] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return tensors, weights


def endless_nested_blocks():
    return *nested_blocks(nested_blocksize=1 << 28), VARIETIES["bnb nf4, nested"].config


def endless_rectangles():
    numbers = torch.randn(32, 64).to(torch.float8_e4m3fn)
    tensors = {"a.q.weight": numbers, "a.q.weight_scale_inv": torch.full((1, 1), 0.5)}
    config = {"quant_method": "fp8", "weight_block_size": [1 << 28, 1 << 28]}
    return tensors, {"q": numbers.float() * 0.5}, config


@pytest.mark.parametrize("made", [endless_nested_blocks, endless_rectangles])
def test_sizes_that_are_merely_stated_take_no_memory(made):
    tensors, weights, config = made()
    with Largest() as largest:
        layer = loaded(tensors, weights, config)
    assert largest.most < 1 << 20
    assert_multiplies(layer, weights)


def test_ranks_do_not_divide_what_they_cannot(variety):
    """Each rank's part is right, or the rank says why there is none."""
    tensors, weights = random_layer(variety.quantise, {"q": 64}, SIZE)
    x = torch.randn(3, SIZE)
    for partition in ("outputs", "inputs"):
        parts = []
        for rank in (0, 1):
            parallel = TensorParallel(rank, 2, lambda partial: [partial])
            try:
                layer = loaded(
                    tensors, weights, variety.config, parallel=parallel, partition=partition
                )
            except ModelLoadError as error:
                assert "tensor_parallel_size" in str(error)
            else:
                parts.append(layer)
        if not parts:
            continue
        wanted = x @ weights["q"].T
        if partition == "outputs":
            found = torch.cat([layer(x, NO_CONTEXT) for layer in parts], 1)
        else:
            halves = [half.contiguous() for half in x.chunk(2, 1)]
            found = sum(layer(half, NO_CONTEXT) for layer, half in zip(parts, halves, strict=True))
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        ("torchao int8", {"_weight_qdata": torch.zeros(32, 4, dtype=torch.int32)}),
        (
            "torchao int8",
            {
                "_weight_qdata": torch.zeros(32, 32, dtype=torch.int8),
                "_weight_scale": torch.ones(2, 32),
                "_weight_zero_point": torch.zeros(2, 32),
            },
        ),
        (
            "torchao int8",
            {
                "_weight_qdata": torch.zeros(32, 32, dtype=torch.int8),
                "_weight_scale": torch.ones(32, 1),
                "_weight_act_pre_scale": torch.ones(32),
            },
        ),
        ("quanto qint8", {"weight._data._data": torch.zeros(32, 32, dtype=torch.uint8)}),
    ],
)
def test_what_a_tool_packed_for_itself_is_refused_with_another_way(config, tensors):
    named = {f"a.q.{kind}": one for kind, one in tensors.items()}
    with pytest.raises(ModelLoadError, match=r"a\.q\..* with tandem quantize"):
        layers_of(named, VARIETIES[config].config)


@pytest.mark.parametrize(("bits", "size", "axis"), [(4, 32, 0), (2, 16, 1), (1, 64, 1), (8, 24, 0)])
def test_groups_of_hqq_may_be_of_any_kind(bits, size, axis):
    """Where they are not multiples of 32 inputs, weights are unpacked."""
    tensors, weights = random_layer(lambda w: hqq(w, bits, size, axis), SHARDS, SIZE)
    layer = loaded(tensors, weights, HQQ)
    assert_multiplies(layer, weights)
    stays_packed = axis == 1 and size % 32 == 0 and takes_panels()
    assert isinstance(layer._parts[0][1], GroupPanels) is stays_packed
    bits_kept = 6 if stays_packed else 16
    stated = sum(one.num_bytes(2) for one in layers_of(tensors, HQQ).values())
    assert stated == sum(weight.numel() for weight in weights.values()) * bits_kept / 8


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("nbits", torch.tensor(5)),
        ("nbits", torch.tensor(4.0)),
        ("axis", torch.tensor(2)),
        ("group_size", torch.tensor(0)),
        ("group_size", torch.tensor(48)),
        ("shape", torch.tensor([64, 64])),
        ("shape", torch.tensor([-32, 64])),
        ("shape", torch.tensor([32])),
        ("scale", torch.zeros(64, 1, dtype=torch.uint8)),
        ("W_q", torch.zeros(32, 16, dtype=torch.bfloat16)),
    ],
)
def test_what_hqq_states_is_checked(kind, value):
    tensors, _ = random_layer(lambda w: hqq(w, 4), {"q": 32}, 64)
    with pytest.raises(ModelLoadError, match=r"a\.q"):
        layers_of(tensors | {f"a.q.{kind}": value}, HQQ)


@pytest.mark.parametrize("quant_type", [None, "int8_weight_only"])
def test_what_old_versions_of_torchao_state_is_refused(quant_type):
    with pytest.raises(ModelLoadError, match="quantization_config: quant_type is"):
        detect({"quant_method": "torchao", "quant_type": quant_type}, {})


def test_quanto_is_detected_by_its_side_file():
    stated = {"model.layers.0.mlp.up_proj": {"weights": "qint8", "activations": "none"}}
    found = detect(stated, {})
    assert found is not None and found[0] == "quanto"
    assert "quanto_qmap.json" in side_files()


ORDERED = ct_config("pack-quantized", num_bits=4, strategy="group", group_size=32, actorder="group")


def test_inputs_that_share_a_scale_may_lie_anywhere():
    tensors, weights = random_layer(ct_ordered, SHARDS, SIZE)
    for numbers in (torch.int32, torch.int64):
        names = {name: one.to(numbers) for name, one in tensors.items() if "g_idx" in name}
        assert_multiplies(loaded(tensors | names, weights, ORDERED), weights)
    (one, *_) = layers_of(tensors, ORDERED).values()
    packed, _ = random_layer(ct_packed, SHARDS, SIZE)
    (plain, *_) = layers_of(packed, VARIETIES["W4A16"].config).values()
    assert one.num_bytes(2) - plain.num_bytes(2) == 4 * SIZE


@pytest.mark.parametrize("stated", [torch.full((SIZE,), -1), torch.arange(SIZE) // 32])
def test_an_order_that_is_none_takes_nothing(stated):
    tensors, weights = random_layer(ct_packed, {"q": 32}, SIZE)
    tensors["a.q.weight_g_idx"] = stated.int()
    ((_, state),) = loaded(tensors, weights, ORDERED)._parts
    assert getattr(state, "order", None) is None and getattr(state, "g_idx", None) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda its: its.clamp_(min=1).sub_(2), "must hold groups from 0 to 5"),
        (lambda its: its.clamp_(min=1).add_(1), "must hold groups from 0 to 5"),
        (lambda its: its.copy_(its.roll(1)), "differs from those of the layers"),
    ],
)
def test_orders_that_cannot_be(change, reason):
    tensors, weights = random_layer(ct_ordered, SHARDS, SIZE)
    change(tensors["a.k.weight_g_idx"])
    if "groups" in reason:
        tensors |= {f"a.{name}.weight_g_idx": tensors["a.k.weight_g_idx"] for name in SHARDS}
    with pytest.raises(ModelLoadError, match=reason):
        loaded(tensors, weights, ORDERED)


def test_codes_are_symmetric_unless_stated_otherwise():
    tensors, weights = random_layer(ct_packed, {"q": 32}, SIZE)
    config = ct_config("pack-quantized", num_bits=4)
    del config["config_groups"]["group_0"]["weights"]["symmetric"]
    assert_multiplies(loaded(tensors, weights, config), weights)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"nested_blocksize": None}, "has no nested_blocksize"),
        ({"nested_blocksize": "256"}, "has no nested_blocksize"),
        ({"nested_blocksize": True}, "has no nested_blocksize"),
        ({"nested_blocksize": 0}, "has no nested_blocksize"),
        ({"nested_offset": None}, "has no nested_offset"),
        ({"nested_offset": "0.5"}, "has no nested_offset"),
        ({"nested_offset": True}, "has no nested_offset"),
        ({"shape": [2048]}, "must have two dimensions"),
        ({"shape": "32"}, "must have two dimensions"),
        ({"shape": [32.0, 64]}, "must have two dimensions"),
        ({"shape": [0, 64]}, "must have two dimensions"),
        ({"shape": [1 << 31, 64]}, "must have two dimensions"),
        ({"shape": [32, 32]}, r"32 outputs and 32 inputs must have \(512, 1\)"),
        ({"blocksize": 48}, "block size is 48"),
        ({"blocksize": 64.0}, "block size is 64.0"),
        ({"blocksize": None}, "block size is None"),
    ],
    ids=str,
)
def test_what_bitsandbytes_states_is_checked(changes, reason):
    tensors, weights = nested_blocks(**changes)
    with pytest.raises(ModelLoadError, match=reason):
        loaded(tensors, weights, VARIETIES["bnb nf4, nested"].config)


@pytest.mark.parametrize("given", ["weight_g_idx", "weight_zero_point"])
def test_tensors_that_a_configuration_speaks_of_are_missed(given):
    tensors, weights = random_layer(ct_packed, {"q": 32}, SIZE)
    stated = {"actorder": True} if given == "weight_g_idx" else {"symmetric": False}
    with pytest.raises(ModelLoadError, match=f"lacks a.q.{given}, which its configuration"):
        loaded(tensors, weights, ct_config("pack-quantized", num_bits=4, **stated))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "marlin-24"),
        ("sparsity_config", {"format": "sparse-24-bitmask"}),
        ("sparsity_config", ["dense"]),
        ("transform_config", {"config_groups": {}}),
        ("config_groups", ["group_0"]),
        ("weights", {"config_groups": {"group_0": {"weights": None}}}),
        ("weights", {"config_groups": {"group_0": 4}}),
        ("weights", ct_config("pack-quantized", num_bits=2)),
        ("weights", ct_config("pack-quantized", num_bits=4, type="float")),
    ],
)
def test_configurations_that_are_not_supported_are_refused_by_key(key, value):
    changes = value if key == "weights" else {key: value}
    with pytest.raises(ModelLoadError, match=rf"quantization_config: {key} is .*for compressed-te"):
        detect(ct_config("pack-quantized") | changes, {})


JUNK = (None, True, -1, 0, 2**70, float("nan"), "", "x", [], {}, [[]], {"": None}, 1e308, [2, 3])


def junk_of(value):
    """A configuration with one thing in it changed, however deep."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(sorted(value))
        return value | {key: junk_of(value[key])}
    return random.choice(JUNK)


def test_whatever_is_stated_the_answer_is_layers_or_a_reason(variety):
    tensors, _ = random_layer(variety.quantise, {"q": 32}, 64)
    headers = headers_of(tensors)
    for _ in range(60):
        stated = junk_of(variety.config)
        if not isinstance(stated, dict):
            continue
        try:
            found = detect(stated, headers)
            if found is not None:
                found[1].layers(headers)
        except ModelLoadError as error:
            assert str(error)
