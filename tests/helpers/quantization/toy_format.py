"""A stored format only for tests: a byte per weight and a scale per output, transposed."""

from dataclasses import dataclass

import torch

from engine.quantization.format import QuantizedLayer, StoredFormat
from engine.quantization.formats import FORMATS, FormatFacts
from engine.quantization.method import LinearMethod, TensorSpec, bias_tensors


@dataclass(frozen=True)
class ToyState:
    """[in, out] int8, [out] scales and bias."""

    codes: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class ToyMethod(LinearMethod[ToyState]):
    """A method that counts how often it has multiplied."""

    def tensors(self, in_features, out_features, has_bias):
        specs = {
            "codes": TensorSpec(
                shape=(in_features, out_features), in_axis=0, out_axis=1, dtypes=(torch.int8,)
            ),
            "row_scales": TensorSpec(shape=(out_features,), out_axis=0),
        }
        return specs | bias_tensors(out_features, has_bias)

    def process(self, part):
        codes, scales = part.shards("codes"), part.shards("row_scales")
        return ToyState(torch.cat(codes, 1), torch.cat(scales).to(part.dtype), part.bias())

    def dequantised(self, part):
        codes, scales = part.shards("codes"), part.shards("row_scales")
        return (torch.cat(codes, 1).float() * torch.cat(scales)).T.to(part.dtype).contiguous()

    def apply(self, state, x):
        product = (x @ state.codes.to(x.dtype)) * state.scales.to(x.dtype)
        return product if state.bias is None else product + state.bias.to(x.dtype)

    def bits_per_weight(self, dtype_bytes):
        return 8

    @property
    def takes_plain_weights(self):
        return False


class ToyFormat(StoredFormat):
    @classmethod
    def detect(cls, config, headers):
        return cls() if config.get("quant_method") == "toy" else None

    def layers(self, headers, device="cpu"):
        return {
            name.removesuffix(".codes"): QuantizedLayer(ToyMethod(), *reversed(header.shape))
            for name, header in headers.items()
            if name.endswith(".codes")
        }


def register(monkeypatch):
    """Register the format for one test: everything that it needs beside its module."""
    facts = FormatFacts(
        target="tests.helpers.quantization.toy_format:ToyFormat",
        stored_as="toy",
        described="as toys have them",
        kept_by_auto_on=("cpu", "cuda"),
    )
    monkeypatch.setitem(FORMATS, "toy", facts)


def toy(weight):
    """[out, in] → tensors by kind, and the weight that they stand for."""
    scales = weight.float().abs().amax(1) / 127
    codes = (weight.float() / scales[:, None]).round().to(torch.int8)
    return {"codes": codes.T.contiguous(), "row_scales": scales}, codes.float() * scales[:, None]
