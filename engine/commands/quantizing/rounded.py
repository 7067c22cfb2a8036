"""Weights rounded to the nearest of 16 or 256 numbers, in GPTQ's layout, which many programs read.

No text is needed: each group of a row's weights gets the scale with the least squared error, among
a few at or below the one that suits its largest weight.
"""

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.commands.quantizing.plain_folder import (
    group_size,
    is_of_a_block,
    is_of_an_encoder,
    plain_config,
)
from engine.contract.host import Tell
from engine.errors import ModelLoadError, UnsupportedFeature
from engine.version import __version__
from engine.weights.safetensors import folder_headers, iter_tensors
from engine.weights.source import Checkpoint

SHARD_BYTES = 4 << 30
"""Size of a file of weights."""
_SHRINKS = tuple(1 - step / 40 for step in range(13))
"""The scales to try, as multiples of the largest one: 1 to 0.7."""
_FLOATS = ("F32", "F16", "BF16")
_INDEX = "model.safetensors.index.json"
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".index.json", ".gguf")


def write_rounded(
    checkpoint: Checkpoint, folder: Path, tell: Tell, *, bits: int, wanted_group: int | None
) -> dict[str, Any]:
    """Make `folder`, with the linear layers of all blocks rounded and everything else unchanged.

    Raises:
        UnsupportedFeature: the checkpoint is not a folder with plain weights.
        InvalidParameter: `wanted_group` does not divide the rows.
        ModelLoadError: a file is damaged, or has numbers that are not finite.
    """
    config = plain_config(checkpoint)
    headers = folder_headers(checkpoint.path)
    layers = {
        name.removesuffix(".weight"): header.shape
        for name, header in headers.items()
        if _is_linear(name, header.shape, bits) and header.type in _FLOATS
    }
    if not layers:
        raise UnsupportedFeature(f"{checkpoint.name} has no linear layers to quantise")
    size = group_size(wanted_group, layers.values())
    folder.mkdir()
    _copy_others(checkpoint.path, folder)
    left_out = _left_out(headers, layers)
    config["quantization_config"] = quantization_config(bits, size, left_out)
    (folder / "config.json").write_text(f"{json.dumps(config, indent=2)}\n")
    shards = Shards(folder)
    errors = []
    for at, (name, tensor) in enumerate(iter_tensors(checkpoint.path)):
        layer = name.removesuffix(".weight")
        if layer in layers and name != layer:
            tensors, error = rounded_layer(tensor, bits, size)
            if not math.isfinite(error):
                raise ModelLoadError(
                    f"{name} has numbers that are not finite; fetch the model again"
                )
            errors.append(error)
            for kind, made in tensors.items():
                shards.add(f"{layer}.{kind}", made)
        else:
            shards.add(name, tensor.clone())
        done = (at + 1) / len(headers)
        tell({"phase": "quantising", "progress": done, "detail": f"tensor {at + 1}/{len(headers)}"})
    shards.close()
    return {
        "bits": bits,
        "group_size": size,
        "layers": len(layers),
        "relative_error": math.fsum(errors) / len(errors),
    }


def quantization_config(bits: int, group_size: int, left_out: list[str]) -> dict[str, Any]:
    """Return the entry for config.json.

    Args:
        left_out: linear layers of the blocks that stay plain.
    """
    found: dict[str, Any] = {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": bits,
        "group_size": group_size,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "pack_dtype": "int32",
        "true_sequential": True,
        "damp_percent": 0.01,
        "meta": {"quantizer": [f"tandem:{__version__}"], "method": "round to nearest"},
    }
    if left_out:
        found["dynamic"] = {f"-:^{re.escape(name)}$": {} for name in left_out}
    return found


def rounded_layer(weight: Tensor, bits: int, group_size: int) -> tuple[dict[str, Tensor], float]:
    """Round a weight [N, K]; return the layer's tensors by kind, and the root of their relative
    squared error.

    Numbers are codes 0 … 2^bits - 1 around a zero point in the middle, times a scale for each
    output and each `group_size` inputs.
    """
    outputs, inputs = weight.shape
    middle = 1 << (bits - 1)
    groups = weight.float().view(outputs, inputs // group_size, group_size)
    largest = groups.abs().amax(-1, keepdim=True) / (middle - 1)
    best_scale = best_error = None
    for shrink in _SHRINKS if bits == 4 else (1.0,):
        scale = (largest * shrink).half().float().clamp(min=torch.finfo(torch.half).tiny)
        error = (_codes(groups, scale, middle) * scale - groups).square_().sum(-1, keepdim=True)
        if best_scale is None or best_error is None:
            best_scale, best_error = scale, error
        else:
            is_better = error < best_error
            best_scale = torch.where(is_better, scale, best_scale)
            best_error = torch.where(is_better, error, best_error)
    assert best_scale is not None and best_error is not None
    codes = (_codes(groups, best_scale, middle) + middle).to(torch.int64).view(outputs, inputs)
    zeros = torch.full((inputs // group_size, outputs), middle - 1, dtype=torch.int64)
    relative = float((best_error.sum() / groups.square().sum().clamp(min=1e-30)).sqrt())
    return {
        "qweight": packed(codes.T, bits),
        "qzeros": packed(zeros.T, bits).T.contiguous(),
        "scales": best_scale.squeeze(-1).T.half().contiguous(),
        "g_idx": (torch.arange(inputs) // group_size).int(),
    }, relative


def _codes(groups: Tensor, scale: Tensor, middle: int) -> Tensor:
    return (groups / scale).round_().clamp_(-middle, middle - 1)


def packed(numbers: Tensor, bits: int) -> Tensor:
    """Pack [K, N] of `bits` each into [K · bits / 32, N] int32; the first is in the lowest bits."""
    together = 32 // bits
    rows = numbers.reshape(-1, together, numbers.shape[1])
    shifts = torch.arange(together).mul_(bits).view(1, -1, 1)
    words = (rows << shifts).sum(1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


@dataclass(slots=True)
class Shards:
    """Files of weights, written as they fill up, with an index if there are several."""

    folder: Path
    _tensors: dict[str, Tensor] = field(default_factory=dict)
    _num_bytes: int = 0
    _files: list[Path] = field(default_factory=list)
    _file_of: dict[str, int] = field(default_factory=dict)
    _total: int = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor, which belongs to this object from now on."""
        if self._tensors and self._num_bytes + tensor.nbytes > SHARD_BYTES:
            self._write()
        self._tensors[name] = tensor.contiguous()
        self._num_bytes += tensor.nbytes
        self._total += tensor.nbytes

    def close(self) -> None:
        """Write the rest and give the files their names."""
        self._write()
        count = len(self._files)
        if count == 1:
            self._files[0].rename(self.folder / "model.safetensors")
            return
        names = [f"model-{at + 1:05}-of-{count:05}.safetensors" for at in range(count)]
        for path, name in zip(self._files, names, strict=True):
            path.rename(self.folder / name)
        index = {
            "metadata": {"total_size": self._total},
            "weight_map": {name: names[at] for name, at in self._file_of.items()},
        }
        (self.folder / _INDEX).write_text(json.dumps(index, indent=2))

    def _write(self) -> None:
        path = self.folder / f"part-{len(self._files)}.safetensors"
        save_file(self._tensors, path, {"format": "pt"})
        self._file_of |= dict.fromkeys(self._tensors, len(self._files))
        self._files.append(path)
        self._tensors, self._num_bytes = {}, 0


def _is_linear(name: str, shape: tuple[int, ...], bits: int) -> bool:
    """Whether the tensor is a linear layer of a decoder's block whose numbers fill whole int32s
    along both sides."""
    is_of_decoder = is_of_a_block(name) and not is_of_an_encoder(name)
    is_linear = is_of_decoder and name.endswith(".weight") and len(shape) == 2
    return is_linear and not any(size % (32 // bits) for size in shape)


def _left_out(headers: Mapping[str, Any], layers: Mapping[str, Any]) -> list[str]:
    names = (name.removesuffix(".weight") for name, one in headers.items() if len(one.shape) == 2)
    return [name for name in names if is_of_a_block(name) and name not in layers]


def _copy_others(source: Path, folder: Path) -> None:
    """Copy tokenizer, chat template, generation_config and other files that are not weights."""
    for path in _other_files(source):
        shutil.copyfile(path, folder / path.name)


def _other_files(source: Path) -> Iterator[Path]:
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.name.endswith(_NOT_COPIED) and path.name != "config.json":
            yield path
