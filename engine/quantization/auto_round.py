"""Checkpoints of auto-round, whose `packing_format` names the layout of another tool.

- `auto_round:auto_gptq` and `auto_round:gptqmodel`: GPTQ's, see `gptq.py`;
- `auto_round:auto_awq`: AWQ's, see `awq.py`;
- `auto_round:llm_compressor`: that of compressed-tensors' NVFP4, MXFP4 and MXFP8;
- `auto_round:fp8_static`: 8-bit floats, see `fp8.py`.

`extra_config` has the bits of layers that differ. Their tensors show the same.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch

from engine.quantization.awq import AwqFormat
from engine.quantization.compressed_tensors import CompressedTensorsFormat
from engine.quantization.format import Headers, QuantizedLayer, StoredFormat
from engine.quantization.fp8 import Fp8Format
from engine.quantization.gptq import GptqFormat
from engine.quantization.int4_groups import unsupported

_V1 = ("auto", "auto_round:auto_gptq", "auto_round:gptq")
_V2 = ("auto_round", "auto_round:gptqmodel", "auto_round:exllamav2")
_AWQ = ("auto_round:auto_awq", "auto_round:awq")
_COMPRESSED = ("auto_round:llm_compressor",)
_FP8 = ("auto_round:fp8_static", "auto_round:fp8")
_KINDS = (*_V1, *_V2, *_AWQ, *_COMPRESSED, *_FP8)
_UNUSED_KEYS = ("format", "checkpoint_format")


class AutoRoundFormat(StoredFormat):
    """Layers in the layout of another tool."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._of_tool = _of_tool(config)

    @classmethod
    def detect(cls, config: Mapping[str, Any], headers: Headers) -> Self | None:
        method = config.get("quant_method")
        return cls(config) if method in ("auto-round", "intel/auto-round") else None

    def layers(self, headers: Headers, device: str = "cpu") -> dict[str, QuantizedLayer]:
        return self._of_tool.layers(headers, device)

    def is_slower_packed(self, layers: Mapping[str, QuantizedLayer], dtype: torch.dtype) -> bool:
        return self._of_tool.is_slower_packed(layers, dtype)


def _of_tool(config: Mapping[str, Any]) -> StoredFormat:
    """Return the format of the tool whose layout the tensors have.

    Raises:
        ModelLoadError: the checkpoint has another layout, or bits that the tool's format lacks.
    """
    kind = config.get("packing_format", "auto_round:auto_gptq")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise unsupported("auto-round", "packing_format", kind, f"one of {', '.join(_KINDS)}")
    if kind in _COMPRESSED:
        return CompressedTensorsFormat({"format": "mixed-precision"})
    if kind in _FP8:
        return Fp8Format({"weight_block_size": config.get("weight_block_size")})
    if config.get("data_type", "int") != "int":
        raise unsupported("auto-round", "data_type", config["data_type"], f"int for {kind}")
    rules = _rules(config)
    plain = {key: one for key, one in config.items() if key not in _UNUSED_KEYS}
    if kind in _AWQ:
        if rules:
            raise unsupported("auto-round", "extra_config", rules, f"absent for {kind}")
        return AwqFormat(plain | {"zero_point": not config.get("sym", True), "version": "gemm"})
    layout = "gptq" if kind in _V1 else "gptq_v2"
    return GptqFormat(plain | {"checkpoint_format": layout, "dynamic": rules})


def _rules(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that differ for some quantised layers."""
    extra = config.get("extra_config") or {}
    if not isinstance(extra, dict) or not all(isinstance(one, dict) for one in extra.values()):
        raise unsupported("auto-round", "extra_config", extra, "an object with rules by layer name")
    of_layers = {name: one for name, one in extra.items() if one.get("bits", 0) != 16}
    keys = ("bits", "group_size", "sym")
    differing = {
        name: {key: one[key] for key in keys if key in one and one[key] != config.get(key)}
        for name, one in of_layers.items()
    }
    return {name: one for name, one in differing.items() if one}
