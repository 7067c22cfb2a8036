"""Finds the network that a file's weights belong to: ours, by names and shapes, or spandrel's."""

import re
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import CorruptFile, ShapeMismatch, UnsupportedArchitecture
from engine.upscaling.network import Network, NetworkFacts
from engine.upscaling.rrdb import RrdbNet
from engine.upscaling.srvgg import CompactNet
from engine.upscaling.state_dict import StateDict

INSTALL_SPANDREL = "pip install 'tandem-server[upscalers]'"
_MAX_SIZE = 1 << 16
"""The largest size that a file's shapes may give any part of a network."""

_OLD_NAMES = (
    (r"model\.0\.", "conv_first."),
    (r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)(?:\.0)?\.", r"body.\1.rdb\2.conv\3."),
    (r"model\.1\.sub\.\d+\.", "conv_body."),
    (r"RRDB_trunk\.(\d+)\.RDB(\d)\.conv(\d)\.", r"body.\1.rdb\2.conv\3."),
    (r"trunk_conv\.", "conv_body."),
    (r"upconv(\d)\.", r"conv_up\1."),
    (r"HRconv\.", "conv_hr."),
)
"""ESRGAN's two older naming schemes, for what Real-ESRGAN's files have. After the blocks, the first
scheme only counts layers."""
_BYTES_PER_OUTPUT_PIXEL = 1024
"""The memory of an unknown network, as for some layers of 64 channels."""
_COMPACT_MARKS = {"body.0.weight", "body.1.weight"}
_RRDB_MARKS = {"conv_first.weight", "body.0.rdb1.conv1.weight"}
_MARKS = (
    _COMPACT_MARKS,
    _RRDB_MARKS,
    {"model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"},
    {"conv_first.weight", "RRDB_trunk.0.RDB1.conv1.weight"},
)
_COUNTED = re.compile(r"model\.(\d+)\.(weight|bias)")


def has_own_names(names: Iterable[str]) -> bool:
    """Whether weights have the names of one of our networks, in any naming scheme."""
    known = set(names)
    return any(marks <= known for marks in _MARKS)


def network_of(weights: StateDict) -> Network:
    """The network with its weights, in float32.

    Raises:
        UnsupportedArchitecture: it is neither ours nor spandrel's, or spandrel is not installed.
        CorruptFile, ShapeMismatch: the weights do not fit each other.
    """
    if weights.keys() >= _COMPACT_MARKS:
        return _filled(_compact(weights), weights)
    named = _with_new_names(weights)
    if named.keys() >= _RRDB_MARKS:
        return _filled(_rrdb(named), named)
    return _of_spandrel(weights)


def _compact(weights: StateDict) -> CompactNet:
    last = max(_numbers(weights, r"body\.(\d+)\."))
    scale = round((_size(weights, f"body.{last}.weight", 0) / 3) ** 0.5)
    with torch.device("meta"):
        return CompactNet(
            features=_size(weights, "body.0.weight", 0), num_convs=(last - 2) // 2, scale=scale
        )


def _rrdb(weights: StateDict) -> RrdbNet:
    blocks = _numbers(weights, r"body\.(\d+)\.")
    ups = _numbers(weights, r"conv_up(\d)\.")
    channels = _size(weights, "conv_first.weight", 1)
    shuffle = round((channels / 3) ** 0.5)
    with torch.device("meta"):
        net = RrdbNet(
            features=_size(weights, "conv_first.weight", 0),
            growth=_size(weights, "body.0.rdb1.conv1.weight", 0),
            num_blocks=max(blocks) + 1,
            num_doublings=max(ups, default=0),
            shuffle=shuffle,
        )
    if net.facts.scale < 1:
        raise UnsupportedArchitecture(
            "this ESRGAN makes images smaller; serve one that makes them larger"
        )
    return net


def _numbers(weights: StateDict, pattern: str) -> list[int]:
    """The numbers in names. In a complete network none is larger than the number of names."""
    found = [int(match[1]) for name in weights if (match := re.match(pattern, name))]
    if max(found, default=0) >= len(weights):
        raise CorruptFile("the weights are numbered with gaps; fetch the model again")
    return found


def _size(weights: StateDict, name: str, dimension: int) -> int:
    tensor = weights.get(name)
    if tensor is None or tensor.ndim != 4 or not 0 < tensor.shape[dimension] <= _MAX_SIZE:
        raise CorruptFile(f"{name} is not the weight of a convolution; fetch the model again")
    return int(tensor.shape[dimension])


def _filled(net: Any, weights: StateDict) -> Network:
    """Give a network without memory the weights' memory."""
    wanted: dict[str, Tensor] = net.state_dict()
    for name, parameter in wanted.items():
        if name not in weights:
            raise CorruptFile(f"the weights lack {name}; fetch the model again")
        if weights[name].shape != parameter.shape:
            raise ShapeMismatch(
                f"{name} has shape {tuple(weights[name].shape)} and should have "
                f"{tuple(parameter.shape)}"
            )
    unknown = weights.keys() - wanted.keys()
    if unknown:
        raise UnsupportedArchitecture(
            f"the weights have {min(unknown)[:80]!r}, which {net.facts.architecture} does not have"
        )
    net.load_state_dict({name: weights[name].float() for name in wanted}, assign=True)
    network: Network = net.eval().requires_grad_(False)
    return network


def _with_new_names(weights: StateDict) -> StateDict:
    named = {}
    for name, tensor in weights.items():
        for pattern, new in _OLD_NAMES:
            name, is_found = re.subn("^" + pattern, new, name)
            if is_found:
                break
        named[name] = tensor
    # The rest of the first scheme: every three layers one enlargement by two, then two more layers.
    counted = sorted({int(found[1]) for name in named if (found := _COUNTED.fullmatch(name))})
    *ups, hr, last = counted if len(counted) >= 2 else [None, None]
    places = {at: f"conv_up{number}" for number, at in enumerate(ups, 1)}
    places |= {hr: "conv_hr", last: "conv_last"}
    return {
        f"{places[int(found[1])]}.{found[2]}" if (found := _COUNTED.fullmatch(name)) else name: t
        for name, t in named.items()
    }


class _SpandrelNetwork(nn.Module):
    """A network of spandrel's with our interface."""

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.model: nn.Module = descriptor.model
        self._descriptor = descriptor
        sizes = descriptor.size_requirements
        self.facts = NetworkFacts(
            architecture=str(descriptor.architecture.name),
            scale=int(descriptor.scale),
            receptive_radius=None,
            size_multiple=max(1, int(sizes.multiple_of)),
            min_side=max(1, int(sizes.minimum)),
            flops_per_pixel=2.0 * sum(p.numel() for p in self.model.parameters()),
            bytes_per_pixel=_BYTES_PER_OUTPUT_PIXEL * int(descriptor.scale) ** 2,
        )

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.model(images)
        return made


def _of_spandrel(weights: StateDict) -> Network:
    try:
        spandrel = import_module("spandrel")
    except Exception as error:  # torchvision for another build of torch can fail in many ways
        raise UnsupportedArchitecture(
            "the weights belong to none of the built-in networks (ESRGAN, Real-ESRGAN and its "
            f"compact one); install spandrel, which knows about forty others: "
            f"{INSTALL_SPANDREL}, with torchvision from the index that torch came from"
        ) from error
    try:
        descriptor = spandrel.ModelLoader().load_from_state_dict(weights)
    except Exception as error:
        raise UnsupportedArchitecture(
            "the weights belong to no network that spandrel knows; serve another upscaler"
        ) from error
    is_upscaler = isinstance(descriptor, spandrel.ImageModelDescriptor)
    if not is_upscaler or (descriptor.input_channels, descriptor.output_channels) != (3, 3):
        raise UnsupportedArchitecture(
            f"{descriptor.architecture.name} does not turn one three-colour image into another; "
            f"serve another upscaler"
        )
    net: Any = _SpandrelNetwork(descriptor)
    network: Network = net.float().eval().requires_grad_(False)
    return network
