"""What an adapter adds to a layer's output, computed beside the layer and never merged into it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import RowUpdates, lora_rows, native


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer, or a convolution, as far as an adapter must fit it."""

    out_features: int
    in_features: int
    kernel: tuple[int, ...] | None = None
    """Of a convolution; None: it is linear."""
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)

    @classmethod
    def of(cls, module: nn.Module) -> "Layer | None":
        """None: it is of a kind that no adapter changes."""
        if isinstance(module, nn.Conv2d):
            if module.groups != 1 or isinstance(module.padding, str):
                return None
            return cls(
                module.out_channels,
                module.in_channels,
                tuple(module.kernel_size),
                tuple(module.stride),
                tuple(module.padding),
                tuple(module.dilation),
            )
        # Packed layers are modules of their own, with the sizes of `nn.Linear`.
        sizes = getattr(module, "out_features", None), getattr(module, "in_features", None)
        if any(not isinstance(size, int) for size in sizes) or list(module.children()):
            return None
        return cls(*sizes)  # type: ignore[arg-type]

    @property
    def is_map(self) -> bool:
        """Whether its inputs are `[R, C, h, w]`; else they are `[R, ..., C]`."""
        return self.kernel is not None

    @property
    def num_cells(self) -> int:
        """Of the kernel."""
        cells = 1
        for side in self.kernel or ():
            cells *= side
        return cells

    def convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        """`[R, C, h, w]` by a kernel of this layer's size, moved as this layer is."""
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation)


class Change(Protocol):
    """Of one layer, by one adapter. Loop thread only."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Its weights."""
        ...

    def to(self, dtype: torch.dtype, device: torch.device) -> Self:
        """The same with its weights there, in the order of memory that they are used in."""
        ...

    def __call__(self, x: Tensor, scales: Tensor) -> Tensor:
        """What it adds to the layer's output.

        Args:
            x: the layer's input for the rows that have the adapter, `[n, ..., in]`, or
                `[n, in, h, w]` of a convolution.
            scales: `[n]` fp32, how strongly it acts on each.
        """
        ...

    def part(self, first: int, num_outputs: int) -> "Change":
        """The same for neighbouring outputs alone."""
        ...

    def matrix(self) -> Tensor:
        """[out, in], or [out, in, k, k], fp32: the whole update put together."""
        ...


@dataclass(frozen=True, slots=True)
class Product:
    """One weight after the other: `B·A`, a Tucker product of three, or a whole update alone.

    Attributes:
        weights: the first is applied first. `[out, in]` mixes channels, `[out, in, k, k]` is
            convolved as the layer is. The adapter's own scale is in the last one.
        is_turned: whether these are two as `RowUpdates` has them, to be added by `add_by_rows`.
    """

    layer: Layer
    weights: tuple[Tensor, ...]
    is_turned: bool = False

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.weights

    def to(self, dtype: torch.dtype, device: torch.device) -> Self:
        weights = tuple(_placed(w, dtype, device) for w in self.weights)
        mixes = len(weights) == 2 and all(weight.ndim == 2 for weight in weights)
        if not mixes or dtype is not torch.float32 or device.type != "cpu" or native.missing():
            return replace(self, weights=weights)
        turned = tuple(weight.t().contiguous().t() for weight in weights)
        return replace(self, weights=turned, is_turned=True)

    def __call__(self, x: Tensor, scales: Tensor) -> Tensor:
        for place, weight in enumerate(self.weights):
            # A layer that is kept in another type, as T5's `wo` is, has inputs of that type.
            x = self._multiplied(x, weight.to(x.dtype))
            if place == 0:
                x = scaled(x, scales)
        return x

    def part(self, first: int, num_outputs: int) -> "Product":
        *others, last = self.weights
        return Product(self.layer, (*others, last[first : first + num_outputs].clone()))

    def matrix(self) -> Tensor:
        whole, *others = (weight.float() for weight in self.weights)
        for weight in others:
            if weight.ndim == 4:
                whole = torch.einsum("omkl,mi->oikl", weight, whole)
            else:
                whole = torch.tensordot(weight, whole, dims=1)
        return whole

    def _multiplied(self, x: Tensor, weight: Tensor) -> Tensor:
        if weight.ndim == 4:
            return self.layer.convolved(x, weight)
        if self.layer.is_map:
            return F.linear(x.movedim(1, -1), weight).movedim(-1, 1)
        return F.linear(x, weight)


@dataclass(frozen=True, slots=True)
class KroneckerProduct:
    """`kron(left, right)`, which is never put together.

    Attributes:
        left: `[o1, i1]`, with the adapter's own scale in it.
        right: `[o2, i2]`, or `[o2, i2, k, k]`.
    """

    layer: Layer
    left: Tensor
    right: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.left, self.right

    def to(self, dtype: torch.dtype, device: torch.device) -> Self:
        left, right = (_placed(weight, dtype, device) for weight in self.tensors)
        return replace(self, left=left, right=right)

    def __call__(self, x: Tensor, scales: Tensor) -> Tensor:
        left, right = self.left.to(x.dtype), self.right.to(x.dtype)
        i1, i2 = left.shape[1], right.shape[1]
        if not self.layer.is_map:
            parts = F.linear(torch.unflatten(x, -1, (i1, i2)), right)
            mixed = torch.einsum("...io,pi->...po", parts, left)
            return scaled(mixed.flatten(-2), scales)
        split = torch.unflatten(x, 1, (i1, i2)).flatten(0, 1)
        if right.ndim == 2:
            right = right[:, :, None, None]
        maps = torch.unflatten(self.layer.convolved(split, right), 0, (len(x), i1))
        return scaled(torch.einsum("riohw,pi->rpohw", maps, left).flatten(1, 2), scales)

    def part(self, first: int, num_outputs: int) -> "Change":
        return Product(self.layer, (self._whole(),)).part(first, num_outputs)

    def matrix(self) -> Tensor:
        return self._whole().float()

    def _whole(self) -> Tensor:
        left = self.left.reshape(*self.left.shape, *[1] * (self.right.ndim - 2))
        return torch.kron(left, self.right.contiguous())


def add_by_rows(updates: Sequence[RowUpdates], x: Tensor, y: Tensor, *, is_map: bool) -> None:
    """Add several products to a layer's output, each to its rows, in one call.

    Args:
        x, y: what goes into the layer and comes out, fp32; `[R, ..., C]`, or `[R, C, h, w]` of a
            convolution.
    """
    if is_map:
        x, y = x.movedim(1, -1), y.movedim(1, -1)
    whole = y.contiguous()
    lora_rows(_positions(whole), _positions(x.contiguous()), updates)
    if whole is not y:
        y.copy_(whole)


def scaled(x: Tensor, scales: Tensor) -> Tensor:
    """Each row by its own scale."""
    return x * scales.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def _positions(x: Tensor) -> Tensor:
    """`[R, P, C]` of `[R, ..., C]`."""
    return x.view(len(x), math.prod(x.shape[1:-1]), x.shape[-1])


def _placed(weight: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    placed = weight.to(device=device, dtype=dtype)
    if placed.ndim == 4:  # as the maps that it meets
        return placed.contiguous(memory_format=torch.channels_last)
    return placed.contiguous()
