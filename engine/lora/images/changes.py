"""The change that an adapter makes to a layer's output, computed beside the layer and never
merged."""

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
    """A linear layer or convolution, as far as an adapter must fit it."""

    out_features: int
    in_features: int
    kernel: tuple[int, ...] | None = None
    """The kernel of a convolution; None for a linear layer."""
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)

    @classmethod
    def of(cls, module: nn.Module) -> "Layer | None":
        """Return the layer of a module, or None if adapters cannot change this kind of module."""
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
        """Whether inputs are `[R, C, h, w]`; otherwise they are `[R, ..., C]`."""
        return self.kernel is not None

    @property
    def num_cells(self) -> int:
        """Number of cells of the kernel."""
        return math.prod(self.kernel or ())

    def convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve `[R, C, h, w]` with a kernel of this layer's size, with its stride and
        padding."""
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation)


class Change(Protocol):
    """The change that one adapter makes to one layer. Loop thread only."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The weights of the change."""
        ...

    def to(self, dtype: torch.dtype, device: torch.device) -> Self:
        """Return the change with its weights on a device, in the order of memory in which they are
        used."""
        ...

    def __call__(self, x: Tensor, scales: Tensor) -> Tensor:
        """Compute the addition to the layer's output.

        Args:
            x: the layer's input for the rows that have the adapter, `[n, ..., in]`, or
                `[n, in, h, w]` of a convolution.
            scales: `[n]` fp32, how strongly it acts on each.
        """
        ...

    def part(self, first: int, num_outputs: int) -> "Change":
        """Return the change for neighbouring outputs alone."""
        ...

    def matrix(self) -> Tensor:
        """The whole update as one fp32 matrix, [out, in] or [out, in, k, k]."""
        ...


@dataclass(frozen=True, slots=True)
class Product:
    """A product of weights: `B·A`, a Tucker product of three, or a whole update alone.

    Attributes:
        weights: in the order in which they are applied. `[out, in]` mixes channels; `[out, in, k,
            k]` is convolved as the layer is. The last one includes the adapter's own scale.
        is_turned: whether these are two in the form of `RowUpdates`, to be added by `add_by_rows`.
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
    """`kron(left, right)`, which is never computed as a whole.

    Attributes:
        left: `[o1, i1]`, including the adapter's own scale.
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
        x, y: the layer's input and output, fp32; `[R, ..., C]`, or `[R, C, h, w]` for a
            convolution.
    """
    if is_map:
        x, y = x.movedim(1, -1), y.movedim(1, -1)
    whole = y.contiguous()
    lora_rows(_positions(whole), _positions(x.contiguous()), updates)
    if whole is not y:
        y.copy_(whole)


def scaled(x: Tensor, scales: Tensor) -> Tensor:
    """Multiply each row by its own scale."""
    return x * scales.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def _positions(x: Tensor) -> Tensor:
    """View `[R, ..., C]` as `[R, P, C]`."""
    return x.view(len(x), math.prod(x.shape[1:-1]), x.shape[-1])


def _placed(weight: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    placed = weight.to(device=device, dtype=dtype)
    if placed.ndim == 4:  # the layer's output is a map too
        return placed.contiguous(memory_format=torch.channels_last)
    return placed.contiguous()
