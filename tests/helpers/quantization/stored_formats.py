"""Makes weights as other tools' checkpoints have them, with the plain ones that they stand for.

bitsandbytes' are written by its own package. The others are packed number by number, by code that
shares nothing with what reads it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import torch
from torch import Tensor

from tests.helpers.quantization.gptq_checkpoints import pack_inputs
from tests.helpers.quantization.packed_folders import Made, write_packed


@dataclass(frozen=True)
class Variety:
    """A way to quantise."""

    config: dict[str, Any]
    """The value of `quantization_config`."""
    quantise: Callable[[Tensor], Made]
    """Quantises a weight [N, K]."""
    bits: float
    """The bits of a weight in panels."""
    name: str
    """The name in the table of formats."""


def bnb_4bit(
    weight: Tensor,
    numbers: str,
    nested: bool = False,
    block_size: int = 64,
    storage: torch.dtype = torch.uint8,
) -> Made:
    packed, state = bnb.quantize_4bit(
        weight.float().contiguous(),
        blocksize=block_size,
        compress_statistics=nested,
        quant_type=numbers,
        quant_storage=storage,
    )
    absmax = state.absmax
    if nested:
        absmax = bnb.dequantize_blockwise(absmax, state.state2) + state.offset
    stream = packed.flatten().view(torch.uint8)
    numbers_of = state.code[torch.stack([stream >> 4, stream & 15], 1).flatten().int()]
    # The package's own function for CPUs mistakes blocks that reach across rows.
    plain = (numbers_of * absmax.repeat_interleave(block_size)[: len(numbers_of)]).view_as(weight)
    # Buffers of the package's are shared between layers; a file has them once each.
    stated = {f"weight.{kind}": one.clone() for kind, one in state.as_dict(packed=True).items()}
    return {"weight": packed} | stated, plain


def bnb_int8(weight: Tensor, *, layout: bool = True) -> Made:
    codes, scales, _ = bnb.int8_vectorwise_quant(weight.half().clone())
    tensors = {"weight": codes, "SCB": scales}
    if layout:
        tensors["weight_format"] = torch.tensor(0, dtype=torch.uint8)
    return tensors, codes.float() * (scales / 127)[:, None]


def grouped(weight: Tensor, bits: int, size: int | None, *, symmetric: bool) -> tuple[Tensor, ...]:
    """Round runs of inputs to codes (signed integers), scales and zero points [N, G]."""
    groups = weight.float().unflatten(1, (-1, size or weight.shape[1]))
    most = 2 ** (bits - 1)
    if symmetric:
        scales = groups.abs().amax(2) / (most - 0.5)
        zeros = torch.zeros_like(scales)
    else:
        low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
        scales = (high - low) / (2 * most - 1)
        zeros = (-most - low / scales).round().clamp(-most, most - 1)
    scales = scales.clamp(min=1e-4).to(torch.bfloat16)
    codes = (groups / scales.float()[..., None]).round() + zeros[..., None]
    return codes.clamp(-most, most - 1).long().flatten(1), scales, zeros.long()


def plain_of(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    of_input = codes.shape[1] // scales.shape[1]
    spread = lambda one: one.float().repeat_interleave(of_input, 1)  # noqa: E731
    return (codes.float() - spread(zeros)) * spread(scales)


def ct_packed(
    weight: Tensor, bits: int = 4, size: int | None = 32, *, symmetric: bool = True
) -> Made:
    codes, scales, zeros = grouped(weight, bits, size, symmetric=symmetric)
    middle = 2 ** (bits - 1)
    tensors = {
        "weight_packed": pack_inputs((codes + middle).T, bits).T.contiguous(),
        "weight_scale": scales,
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        # Zero points are packed along the outputs, with room for whole int32s.
        padded = torch.nn.functional.pad(zeros + middle, (0, 0, 0, -len(zeros) % (32 // bits)))
        tensors["weight_zero_point"] = pack_inputs(padded, bits)
    return tensors, plain_of(codes, scales, zeros)


def ct_ordered(weight: Tensor, size: int = 32) -> Made:
    """Order inputs so that those of a group lie anywhere, in the same places for all weights of one
    width."""
    order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    codes, scales, zeros = grouped(weight[:, order], 4, size, symmetric=True)
    tensors = {
        "weight_packed": pack_inputs((codes[:, place] + 8).T, 4).T.contiguous(),
        "weight_scale": scales,
        "weight_shape": torch.tensor(weight.shape),
        "weight_g_idx": (place // size).int(),
    }
    return tensors, plain_of(codes, scales, zeros)[:, place]


def ct_int8(
    weight: Tensor, *, whole: bool = False, symmetric: bool = True, zeros: bool = False
) -> Made:
    """Quantise to bytes.

    Args:
        zeros: whether symmetric codes have zero points, too.
    """
    codes, scales, zero_points = grouped(weight, 8, None, symmetric=symmetric)
    if whole:
        scales = scales.amax().view(1)
        codes = (weight.float() / scales.float()).round().clamp(-128, 127).long()
        plain = codes.float() * scales.float()
    else:
        plain = plain_of(codes, scales, zero_points)
    tensors = {"weight": codes.to(torch.int8), "weight_scale": scales}
    if zeros or not symmetric:
        tensors["weight_zero_point"] = zero_points.to(torch.int8)
    return tensors, plain


def fp8(weight: Tensor, kind: str, block: tuple[int, int] | None, shape: Any = None) -> Made:
    """Quantise to fp8 with a scale per block, or per output or matrix (`block` of 0 for all)."""
    height, width = (one or size for one, size in zip(block or (0, 0), weight.shape, strict=True))
    numbers, plain = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), torch.empty(weight.shape)
    rows = []
    for top in range(0, weight.shape[0], height):
        row = []
        for left in range(0, weight.shape[1], width):
            at = slice(top, top + height), slice(left, left + width)
            scale = (weight[at].float().abs().amax() / 448).clamp(min=1e-6)
            numbers[at] = (weight[at].float() / scale).to(torch.float8_e4m3fn)
            plain[at] = numbers[at].float() * scale
            row.append(scale)
        rows.append(torch.stack(row))
    scales = torch.stack(rows)
    return {"weight": numbers, kind: scales if shape is None else scales.view(shape)}, plain


def ct_config(form: str, **weights: Any) -> dict[str, Any]:
    scheme = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"} | weights
    group = {"targets": ["Linear"], "weights": scheme, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}
BNB8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
FP8_BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 64]}


def float4(weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Round runs of inputs to 4-bit floats: packed bytes [N, runs, bytes], and the weight."""
    scaled = weight.float().unflatten(1, (scales.shape[1], -1)) / scales[..., None]
    numbers = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    magnitudes = (scaled.abs()[..., None] - numbers).abs().argmin(-1)
    plain = (numbers[magnitudes].copysign(scaled) * scales[..., None]).flatten(1)
    codes = magnitudes + 8 * scaled.signbit()
    return (codes[..., ::2] + 16 * codes[..., 1::2]).byte(), plain


def exponents_of(weight: Tensor, most: int) -> Tensor:
    """The powers of two by which each 32 inputs are divided to be below two to the `most`."""
    largest = weight.float().unflatten(1, (-1, 32)).abs().amax(2)
    return (largest.log2().floor() + 1 - most).clamp(-126, 126)


def mxfp4(weight: Tensor) -> Made:
    exponents = exponents_of(weight, 3)
    packed, plain = float4(weight, exponents.exp2())
    return {"blocks": packed, "scales": (exponents + 127).byte()}, plain


def ct_mxfp4(weight: Tensor) -> Made:
    tensors, plain = mxfp4(weight)
    return {
        "weight_packed": tensors["blocks"].flatten(1),
        "weight_scale": tensors["scales"],
    }, plain


def ct_mxfp8(weight: Tensor) -> Made:
    exponents = exponents_of(weight, 8)
    scales = exponents.exp2().repeat_interleave(32, 1)
    numbers = (weight.float() / scales).to(torch.float8_e4m3fn)
    return {"weight": numbers, "weight_scale": (exponents + 127).byte()}, numbers.float() * scales


def ct_nvfp4(weight: Tensor) -> Made:
    largest = weight.float().unflatten(1, (-1, 16)).abs().amax(2)
    whole = 448 * 6 / largest.amax().clamp(min=1e-6)
    scales = (largest / 6 * whole).clamp(min=1).to(torch.float8_e4m3fn)
    packed, plain = float4(weight, scales.float() / whole)
    tensors = {"weight_packed": packed.flatten(1), "weight_scale": scales}
    return tensors | {"weight_global_scale": whole.view(1)}, plain


TORCHAO = {"quant_method": "torchao", "quant_type": {"default": {"_data": {}}}}
TORCHAO_NAMES = {
    "weight": "_weight_qdata",
    "weight_scale": "_weight_scale",
    "weight_zero_point": "_weight_zero_point",
}
QUANTO_NAMES = {"weight": "weight._data", "weight_scale": "weight._scale"}


def renamed(weight: Tensor, made: Callable[[Tensor], Made], names: dict[str, str]) -> Made:
    """The same tensors with other names."""
    tensors, plain = made(weight)
    return {names[kind]: tensor for kind, tensor in tensors.items()}, plain


def quanto_int8(weight: Tensor) -> Made:
    tensors, plain = renamed(weight, ct_int8, QUANTO_NAMES)
    return tensors | {"input_scale": torch.ones(()), "output_scale": torch.ones(())}, plain


HQQ = {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"axis": 1}}}


def hqq(weight: Tensor, bits: int, size: int = 32, axis: int = 1) -> Made:
    groups = weight.float().reshape((-1, size) if axis == 1 else (size, -1))
    low, high = groups.amin(axis, keepdim=True), groups.amax(axis, keepdim=True)
    scales = ((high - low) / (2**bits - 1)).clamp(min=1e-4).to(torch.bfloat16)
    zeros = (-low / scales).to(torch.bfloat16)
    codes = (groups / scales + zeros).round().clamp(0, 2**bits - 1).int()
    plain = ((codes - zeros.float()) * scales.float()).view_as(weight)
    together = 10 if bits == 3 else 8 // bits
    parts = torch.nn.functional.pad(codes, (0, 0, 0, -len(codes) % together)).chunk(together)
    packed = torch.zeros_like(parts[0])
    for part in parts:
        packed = packed << bits | part
    stated = {"nbits": bits, "group_size": size, "axis": axis, "shape": list(weight.shape)}
    return {
        "W_q": packed if bits == 3 else packed.byte(),
        "scale": scales,
        "zero": zeros,
    } | {name: torch.tensor(one, dtype=torch.int32) for name, one in stated.items()}, plain


VARIETIES = {
    "bnb nf4": Variety(BNB4, lambda w: bnb_4bit(w, "nf4"), 5, "bitsandbytes"),
    "bnb nf4, nested": Variety(BNB4, lambda w: bnb_4bit(w, "nf4", True), 5, "bitsandbytes"),
    "bnb fp4, nested": Variety(BNB4, lambda w: bnb_4bit(w, "fp4", True), 5, "bitsandbytes"),
    "bnb nf4, blocks of 128, as bf16": Variety(
        BNB4, lambda w: bnb_4bit(w, "nf4", True, 128, torch.bfloat16), 5, "bitsandbytes"
    ),
    "bnb int8": Variety(BNB8, bnb_int8, 9, "bitsandbytes"),
    "W4A16": Variety(
        ct_config("pack-quantized", num_bits=4, strategy="group", group_size=32),
        ct_packed,
        4.5,
        "compressed-tensors",
    ),
    "W4A16, asymmetric": Variety(
        ct_config("pack-quantized", num_bits=4, symmetric=False),
        lambda w: ct_packed(w, symmetric=False),
        6,
        "compressed-tensors",
    ),
    "W8A16": Variety(
        ct_config("pack-quantized"), lambda w: ct_packed(w, 8, None), 8.5, "compressed-tensors"
    ),
    "W8A8": Variety(ct_config("int-quantized"), ct_int8, 8.5, "compressed-tensors"),
    "W8A8, asymmetric": Variety(
        ct_config("int-quantized", symmetric=False),
        lambda w: ct_int8(w, symmetric=False),
        10,
        "compressed-tensors",
    ),
    "W8A8, a scale per weight": Variety(
        ct_config("naive-quantized"), lambda w: ct_int8(w, whole=True), 8.5, "compressed-tensors"
    ),
    "FP8": Variety(
        ct_config("float-quantized", type="float"),
        lambda w: fp8(w, "weight_scale", (1, 0)),
        9,
        "compressed-tensors",
    ),
    "FP8, static": Variety(
        ct_config("naive-quantized", type="float"),
        lambda w: (
            fp8(w, "weight_scale", None, (1,))[0] | {"input_scale": torch.ones(1)},
            fp8(w, "weight_scale", None)[1],
        ),
        9,
        "compressed-tensors",
    ),
    "NVFP4": Variety(
        ct_config("nvfp4-pack-quantized", num_bits=4, type="float", group_size=16),
        lambda w: (ct_nvfp4(w)[0] | {"input_global_scale": torch.ones(1)}, ct_nvfp4(w)[1]),
        6,
        "compressed-tensors",
    ),
    "MXFP4 of compressed-tensors": Variety(
        ct_config("mxfp4-pack-quantized", num_bits=4, type="float", group_size=32),
        ct_mxfp4,
        4.25,
        "compressed-tensors",
    ),
    "MXFP8": Variety(
        ct_config("mxfp8-quantized", type="float", group_size=32),
        ct_mxfp8,
        9,
        "compressed-tensors",
    ),
    "FP8 blocks": Variety(FP8_BLOCKS, lambda w: fp8(w, "weight_scale_inv", (32, 64)), 9, "fp8"),
    "FP8 of one scale": Variety(
        {"quant_method": "fp8", "activation_scheme": "static"},
        lambda w: (
            fp8(w, "weight_scale", None, ())[0] | {"input_scale": torch.tensor(1.0)},
            fp8(w, "weight_scale", None)[1],
        ),
        9,
        "fp8",
    ),
    "MXFP4": Variety({"quant_method": "mxfp4"}, mxfp4, 4.25, "mxfp4"),
    "auto-round": Variety(
        {
            "quant_method": "auto-round",
            "packing_format": "auto_round:llm_compressor",
            "data_type": "mx_fp",
            "bits": 4,
            "group_size": 32,
        },
        ct_mxfp4,
        4.25,
        "auto-round",
    ),
    "torchao int8": Variety(
        TORCHAO,
        lambda w: renamed(w, lambda w: ct_int8(w, symmetric=True, zeros=True), TORCHAO_NAMES),
        8.5,
        "torchao",
    ),
    "torchao int8, asymmetric": Variety(
        {
            "quant_method": "torchao",
            "quant_type": {"default": {"_data": {"mapping_type": {"_data": "ASYMMETRIC"}}}},
        },
        lambda w: renamed(w, lambda w: ct_int8(w, symmetric=False), TORCHAO_NAMES),
        10,
        "torchao",
    ),
    "torchao float8": Variety(
        TORCHAO,
        lambda w: renamed(w, lambda w: fp8(w, "weight_scale", (1, 0)), TORCHAO_NAMES),
        9,
        "torchao",
    ),
    "quanto qint8": Variety({"quant_method": "quanto"}, quanto_int8, 8.5, "quanto"),
    "quanto qfloat8": Variety(
        {"quant_method": "quanto"},
        lambda w: renamed(w, lambda w: fp8(w, "weight_scale", (1, 0)), QUANTO_NAMES),
        9,
        "quanto",
    ),
    "HQQ": Variety(HQQ, lambda w: hqq(w, 4), 6, "hqq"),
    "HQQ, 3 bits": Variety(HQQ, lambda w: hqq(w, 3), 6, "hqq"),
    "HQQ, 8 bits": Variety(HQQ, lambda w: hqq(w, 8), 10, "hqq"),
    "fbgemm": Variety(
        {"quant_method": "fbgemm_fp8"}, lambda w: fp8(w, "weight_scale", (1, 0)), 9, "fp8"
    ),
}


def write_checkpoint(original: Path, folder: Path, variety: Variety) -> tuple[Path, Path]:
    """Write a model folder whose blocks' linear layers are quantised, and its twin with plain
    weights."""

    def quantise(layer: str, weight: Tensor) -> Made | None:
        return variety.quantise(weight) if layer.endswith("_proj") else None

    return write_packed(original, folder, quantise, variety.config)
