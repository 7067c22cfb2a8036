"""Runs a graph of ncnn's layers as a network: the layers of convolutional networks that enlarge
images, computed as ncnn does.

This is the slow way: `engine.upscaling.loading` recognises the networks that are built in.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import CorruptFile, UnsupportedArchitecture
from engine.upscaling.ncnn.param import Layer
from engine.upscaling.ncnn.weights import WeightReader
from engine.upscaling.network import NetworkFacts

_MAX_CHANNELS = 16384
_MAX_KERNEL = 31
_MAX_SCALE = 16


@dataclass(frozen=True, slots=True)
class _Blob:
    """The shape of what passes between layers.

    Attributes:
        scale: its pixels per pixel of the input, along a side.
        radius: how far one of its pixels depends on the input to each side, in pixels of the
            input.
    """

    channels: int
    scale: int
    radius: float


class NcnnGraph(nn.Module):
    """An `engine.upscaling.network.Network` from a graph.

    Raises:
        CorruptFile: graph and weights do not fit each other.
        UnsupportedArchitecture: a layer is of a kind that is not supported.
    """

    def __init__(self, layers: list[Layer], weights: WeightReader) -> None:
        super().__init__()
        self.layers = [layer for layer in layers if layer.kind != "Input"]
        given = [name for layer in layers if layer.kind == "Input" for name in layer.outputs]
        if len(given) != 1 or not self.layers or not all(layer.outputs for layer in self.layers):
            raise UnsupportedArchitecture("the graph must take one image and make one")
        self._given = given[0]
        self._result = self.layers[-1].outputs[0]
        self._last_uses = _last_uses(self.layers, self._result)
        self.convolutions = nn.ModuleDict()
        self.slopes = nn.ParameterDict()
        blobs = {self._given: _Blob(3, 1, 0.0)}
        flops = 0.0
        for number, layer in enumerate(self.layers):
            made = self._add(number, layer, [blobs[name] for name in layer.inputs], weights)
            blobs |= dict.fromkeys(layer.outputs, made)
            if layer.kind == "Convolution":
                flops += 2.0 * layer.integer(6) * made.scale**2
        weights.close()
        result = blobs[self._result]
        if result.channels != 3:
            raise UnsupportedArchitecture(
                f"the graph makes {result.channels} channels; an upscaler must make 3"
            )
        self.facts = NetworkFacts(
            architecture="ncnn",
            scale=result.scale,
            receptive_radius=math.ceil(result.radius) + 1,
            flops_per_pixel=flops,
            bytes_per_pixel=4 * 4 * max(b.channels * b.scale**2 for b in blobs.values()),
        )

    def forward(self, images: Tensor) -> Tensor:
        blobs = {self._given: images}
        for number, layer in enumerate(self.layers):
            made = self._run(number, layer, [blobs[name] for name in layer.inputs])
            blobs |= dict.fromkeys(layer.outputs, made)
            for name in self._last_uses[number]:
                del blobs[name]
        return blobs[self._result]

    def _add(self, number: int, layer: Layer, given: list[_Blob], weights: WeightReader) -> _Blob:
        """Read a layer's weights; returns the shape of its output."""
        if not given or layer.kind not in _LAYERS:
            known = ", ".join(_LAYERS)
            raise UnsupportedArchitecture(
                f"layer {layer.name[:80]!r} is a {layer.kind[:80]}; only {known} are supported"
            )
        first = given[0]
        radius = max(blob.radius for blob in given)
        _check_operation(layer)
        _check_fit(layer, given)
        if layer.kind == "Convolution":
            return self._add_convolution(number, layer, first, weights)
        if layer.kind == "PReLU":
            self.slopes[str(number)] = nn.Parameter(
                weights.plain(_bounded(layer.integer(0), _MAX_CHANNELS, layer))
            )
        if layer.kind == "Concat":
            channels = _bounded(sum(blob.channels for blob in given), _MAX_CHANNELS, layer)
            return _Blob(channels, first.scale, radius)
        if layer.kind == "Interp":
            factor = int(layer.number(1))
            if (layer.integer(0), layer.number(2)) != (1, factor) or layer.integer(3):
                raise UnsupportedArchitecture(
                    f"layer {layer.name!r} must enlarge by nearest pixels"
                )
            return _Blob(first.channels, _scaled(first.scale, factor, layer), radius)
        if layer.kind == "PixelShuffle":
            factor = layer.integer(0)
            scale = _scaled(first.scale, factor, layer)
            return _Blob(first.channels // factor**2, scale, radius)
        return _Blob(first.channels, first.scale, radius)

    def _add_convolution(
        self, number: int, layer: Layer, given: _Blob, weights: WeightReader
    ) -> _Blob:
        outputs = _bounded(layer.integer(0), _MAX_CHANNELS, layer)
        kernel = _bounded(layer.integer(1), _MAX_KERNEL, layer)
        plain = (kernel % 2, layer.integer(2, 1), layer.integer(3, 1), layer.integer(4))
        is_square = layer.integer(11, kernel) == kernel and layer.integer(14, kernel // 2) == (
            kernel // 2
        )
        if plain != (1, 1, 1, kernel // 2) or not is_square or layer.number(18):
            raise UnsupportedArchitecture(
                f"layer {layer.name!r} must be a plain convolution, which keeps an image's size"
            )
        shape = (outputs, given.channels, kernel, kernel)
        if layer.integer(6) != math.prod(shape):
            raise CorruptFile(
                f"layer {layer.name!r} has {layer.integer(6)} weights and should have "
                f"{math.prod(shape)}"
            )
        weight = weights.packed(math.prod(shape)).view(shape)
        bias = weights.plain(outputs) if layer.integer(5) else torch.zeros(outputs)
        with torch.device("meta"):
            conv = nn.Conv2d(given.channels, outputs, kernel, padding=kernel // 2)
        conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.convolutions[str(number)] = conv
        return _Blob(outputs, given.scale, given.radius + (kernel // 2) / given.scale)

    def _run(self, number: int, layer: Layer, given: list[Tensor]) -> Tensor:
        first = given[0]
        match layer.kind:
            case "Convolution":
                made: Tensor = self.convolutions[str(number)](first)
                return _activated(made, layer)
            case "PReLU":
                return functional.prelu(first, self.slopes[str(number)])
            case "ReLU":
                return functional.leaky_relu(first, layer.number(0))
            case "Concat":
                return torch.cat(given, 1)
            case "Interp":
                return functional.interpolate(first, scale_factor=layer.number(1), mode="nearest")
            case "PixelShuffle":
                return functional.pixel_shuffle(first, layer.integer(0))
            case "BinaryOp":
                other = given[1] if len(given) > 1 else layer.number(2)
                return first + other if layer.integer(0) == 0 else first * other
            case "Eltwise":
                factors = layer.numbers(1) or (1.0,) * len(given)
                scaled = [x * factor for x, factor in zip(given, factors, strict=True)]
                return sum(scaled[1:], start=scaled[0])
            case _:  # Split, Noop, Dropout
                return first


_LAYERS = (
    *("Convolution", "PReLU", "ReLU", "Concat", "Interp", "PixelShuffle", "BinaryOp", "Eltwise"),
    *("Split", "Noop", "Dropout"),
)


def _check_operation(layer: Layer) -> None:
    """Check that a layer does what `NcnnGraph` does for its kind.

    Raises:
        UnsupportedArchitecture: it does something else.
    """
    asked = layer.integer(0)
    known = {
        "Concat": asked == 0,
        "BinaryOp": asked in (0, 2),
        "Eltwise": asked == 1,
        "PixelShuffle": layer.kind != "PixelShuffle" or layer.integer(1) == 0,
        "Convolution": layer.kind != "Convolution" or layer.integer(9) in (0, 1, 2),
    }
    if not known.get(layer.kind, True):
        raise UnsupportedArchitecture(
            f"layer {layer.name[:80]!r} is a {layer.kind} with options that are not supported"
        )


def _check_fit(layer: Layer, given: list[_Blob]) -> None:
    """Check that a layer can work on its inputs.

    Raises:
        CorruptFile: it cannot.
    """
    first = given[0]
    must_equal = layer.kind in ("BinaryOp", "Eltwise")
    num_factors = len(layer.numbers(1)) if layer.kind == "Eltwise" else 0
    fits = all(blob.scale == first.scale for blob in given)
    fits &= not must_equal or all(blob.channels == first.channels for blob in given)
    fits &= layer.kind != "BinaryOp" or len(given) <= 2
    fits &= num_factors in (0, len(given))
    fits &= layer.kind != "PReLU" or layer.integer(0) in (1, first.channels)
    if layer.kind == "PixelShuffle":
        fits &= layer.integer(0) > 0 and first.channels % layer.integer(0) ** 2 == 0
    if not fits:
        raise CorruptFile(
            f"layer {layer.name[:80]!r} does not fit its inputs; fetch the model again"
        )


def _last_uses(layers: list[Layer], result: str) -> list[list[str]]:
    """The names of values that no layer needs any more after each layer."""
    last = {name: number for number, layer in enumerate(layers) for name in layer.outputs}
    last |= {name: number for number, layer in enumerate(layers) for name in layer.inputs}
    last.pop(result)
    return [[name for name, at in last.items() if at == number] for number in range(len(layers))]


def _activated(x: Tensor, layer: Layer) -> Tensor:
    kind = layer.integer(9)
    if kind == 0:
        return x
    slope = layer.numbers(10)[0] if kind == 2 and layer.numbers(10) else 0.0
    return functional.leaky_relu(x, slope)


def _bounded(size: int, most: int, layer: Layer) -> int:
    if not 0 < size <= most:
        raise CorruptFile(f"layer {layer.name!r} has a size of {size}; it must be 1 to {most}")
    return size


def _scaled(scale: int, factor: int, layer: Layer) -> int:
    return _bounded(scale * _bounded(factor, _MAX_SCALE, layer), _MAX_SCALE, layer)
