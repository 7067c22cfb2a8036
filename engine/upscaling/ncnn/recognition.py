"""Recognises an ncnn graph that is one of our own networks, and maps its weights to our names."""

import math

import torch
from torch import Tensor

from engine.errors import ModelLoadError
from engine.upscaling.architectures import network_of
from engine.upscaling.ncnn.graph import NcnnGraph
from engine.upscaling.network import Network
from engine.upscaling.state_dict import StateDict

_TRIAL_SIDE = 12
_TOLERANCE = 1e-4


def recognised(graph: NcnnGraph) -> Network | None:
    """The same network as one of ours, which is faster; None if there is none. The order of layers
    suggests the network, and equal results for an image confirm it."""
    named = _compact(graph) if len(graph.slopes) else _rrdb(graph)
    try:
        network = network_of(named)
    except ModelLoadError:
        return None
    seeded = torch.Generator().manual_seed(0)
    trial = torch.rand((1, 3, _TRIAL_SIDE, _TRIAL_SIDE), generator=seeded)
    with torch.inference_mode():
        expected, found = graph(trial), network(trial)
    is_same = found.shape == expected.shape and bool(
        ((found - expected).abs() <= _TOLERANCE * (1 + expected.abs())).all()
    )
    return network if is_same else None


def _compact(graph: NcnnGraph) -> StateDict:
    named = {}
    for number, slopes in enumerate(graph.slopes.values()):
        named[f"body.{2 * number + 1}.weight"] = slopes
    for number, convolution in enumerate(graph.convolutions.values()):
        named |= _both(f"body.{2 * number}", convolution)
    return named


def _rrdb(graph: NcnnGraph) -> StateDict:
    """The weights by our names, taken in the order in which convolutions are computed."""
    num_doublings = round(math.log2(graph.facts.scale))
    ups = [f"conv_up{number}" for number in range(1, num_doublings + 1)]
    last = ["conv_body", *ups, "conv_hr", "conv_last"]
    num_blocks = max(0, len(graph.convolutions) - 1 - len(last)) // 15
    blocks = [
        f"body.{block}.rdb{dense}.conv{conv}"
        for block in range(num_blocks)
        for dense in range(1, 4)
        for conv in range(1, 6)
    ]
    names = ["conv_first", *blocks, *last]
    if len(names) != len(graph.convolutions):
        return {}
    named: StateDict = {}
    for name, convolution in zip(names, graph.convolutions.values(), strict=True):
        named |= _both(name, convolution)
    return named


def _both(name: str, convolution: torch.nn.Module) -> dict[str, Tensor]:
    return {f"{name}.{kind}": tensor.data for kind, tensor in convolution.named_parameters()}
