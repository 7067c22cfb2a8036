"""The 4-bit floats of compressed-tensors checkpoints.

A layer has `weight_packed` [N, K / 2] (uint8), two numbers to a byte, the first in the lower half,
and `weight_scale` [N, K / run]:

- NVFP4 (`nvfp4-pack-quantized`): 8-bit floats for runs of 16, to be divided by
  `weight_global_scale` [1];
- MXFP4 (`mxfp4-pack-quantized`): exponents plus 127 (uint8) for runs of 32.
"""

from dataclasses import dataclass

import torch

from engine.errors import MissingWeight, ShapeMismatch
from engine.quantization.float4_groups import Float4Method, Float4Weight, powers_of_two
from engine.quantization.format import Headers, QuantizedLayer
from engine.quantization.fp8 import FP8_TYPE, left_out
from engine.quantization.int4_groups import check_finite, is_matrix
from engine.quantization.method import LinearPart, TensorSpec, bias_tensors

_RUNS = {FP8_TYPE: 16, "U8": 32}
"""Inputs that share a scale, by the type of the scales."""
_GLOBAL = "weight_global_scale"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedFloat4Method(Float4Method):
    """NVFP4 where runs have 16 inputs, otherwise MXFP4."""

    left_out: tuple[tuple[str, tuple[int, ...]], ...]
    """Kinds and shapes of tensors that are not used."""

    @property
    def has_global_scale(self) -> bool:
        return self.run == _RUNS[FP8_TYPE]

    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        scale_dtype = torch.float8_e4m3fn if self.has_global_scale else torch.uint8
        specs = {
            kind: TensorSpec(shape=(out_features, width), out_axis=0, in_axis=1, dtypes=(dtype,))
            for kind, width, dtype in (
                ("weight_packed", in_features // 2, torch.uint8),
                ("weight_scale", in_features // self.run, scale_dtype),
            )
        }
        if self.has_global_scale:
            specs[_GLOBAL] = TensorSpec(shape=(1,), dtypes=(torch.float32,))
        specs |= {kind: TensorSpec(shape=shape) for kind, shape in self.left_out}
        return specs | bias_tensors(out_features, has_bias)

    def weight(self, part: LinearPart) -> Float4Weight:
        for kind, _ in self.left_out:
            part.shards(kind)
        packed, scales = torch.cat(part.shards("weight_packed")), part.shards("weight_scale")
        name = [part.name(shard, "weight_scale") for shard in range(len(scales))]
        if self.has_global_scale:
            wholes = part.shards(_GLOBAL)
            scales = [one.float() / whole for one, whole in zip(scales, wholes, strict=True)]
            for shard, one in enumerate(scales):
                check_finite(f"{name[shard]} or {part.name(shard, _GLOBAL)}", one)
        else:
            scales = [powers_of_two(*one) for one in zip(name, scales, strict=True)]
        return Float4Weight(packed, torch.cat(scales))


def float4_layer(
    name: str, headers: Headers, device: str, unused: tuple[str, ...]
) -> QuantizedLayer:
    """Describe a layer of 4-bit floats.

    Args:
        unused: kinds of further tensors that a layer may have.

    Raises:
        MissingWeight, ShapeMismatch: the tensors do not fit together.
    """
    shape, scale = headers[f"{name}.weight_packed"].shape, headers.get(f"{name}.weight_scale")
    run = 0 if scale is None else _RUNS.get(scale.type, 0)
    for kind in ("weight_scale", *([_GLOBAL] if run == _RUNS[FP8_TYPE] else [])):
        if f"{name}.{kind}" not in headers:
            raise MissingWeight(f"the checkpoint lacks {name}.{kind}; fetch the model again")
    if not run or not is_matrix(shape) or 2 * shape[1] % run:
        raise ShapeMismatch(
            f"{name} has packed 4-bit floats of shape {shape} and scales of type "
            f"{scale.type if scale else None}; it must be a matrix with {FP8_TYPE} scales for each "
            f"16 inputs (NVFP4) or U8 scales for each 32 (MXFP4)"
        )
    method = CompressedFloat4Method(
        run=run, left_out=left_out(name, headers, unused), device=device
    )
    return QuantizedLayer(method, shape[0], 2 * shape[1])
