"""4-bit weights whose inputs share a scale and a zero point by groups, as in GPTQ and AWQ.

`weight = scale * (code - zero)`. On a GPU they keep the form that `kernels.linear_w4a16` takes; on
a CPU they are rearranged into panels (`kernels.linear_panels`), which hold the same numbers.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.errors import CorruptFile, ModelLoadError, ShapeMismatch
from engine.quantization.format import Headers, QuantizedLayer
from engine.quantization.method import LinearMethod, State
from engine.quantization.panels import PanelsState, are_panels_slower
from kernels import GGUFType, linear_w4a16, native
from kernels.linear_panels.panels import BLOCK, Codes, PanelFormat, Panels, chunks, pack_in_parts
from kernels.linear_w4a16.layouts import PER_INT32, unpack
from kernels.linear_w4a16.reference import SYMMETRIC_ZERO, dequantize

BITS = 4
SYMMETRIC = PanelFormat(bits=BITS, offset=SYMMETRIC_ZERO)
"""The panel format for fp16 scales, like GGUF's Q4_0."""
ASYMMETRIC = PanelFormat(bits=BITS, scale_dtype=torch.float32, has_min=True)
"""The panel format with minimums. A minimum is a scale times a zero point, which fp32 holds
exactly."""
FP16_SCALES = (torch.float16, torch.bfloat16)
SCALE_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True, slots=True)
class GroupedWeight:
    """The weight arguments of `kernels.linear_w4a16`, for outputs whose inputs have the same
    groups."""

    qweight: Tensor
    scales: Tensor
    zeros: Tensor | None
    """The zero points; None if all are 8."""
    group_size: int
    g_idx: Tensor | None
    bias: Tensor | None = None
    """fp32."""

    @classmethod
    def of_shards(
        cls,
        qweight: Sequence[Tensor],
        scales: Sequence[Tensor],
        zeros: Sequence[Tensor],
        group_size: int,
        g_idx: Tensor | None = None,
    ) -> "GroupedWeight":
        """Build a weight from neighbouring outputs' tensors, in the kernel's layouts."""
        all_zeros = torch.cat(list(zeros), 1)
        is_symmetric = bool((all_zeros == SYMMETRIC_ZERO).all())
        return cls(
            torch.cat(list(qweight), 1),
            torch.cat(list(scales), 1),
            None if is_symmetric else all_zeros,
            group_size,
            g_idx,
        )

    @property
    def out_features(self) -> int:
        return self.qweight.shape[1]

    @property
    def in_features(self) -> int:
        return PER_INT32 * self.qweight.shape[0]

    def arranged(
        self, device: torch.device, dtype: torch.dtype, bias: Tensor | None
    ) -> "GroupedWeight | GroupPanels":
        """Arrange the weight on the device of its products, for activations in `dtype`."""
        bias = None if bias is None else bias.float()
        if device.type == "cpu" and takes_panels():
            panels = GroupPanels.of(self, bias)
            if panels is not None:
                return panels
        zeros, g_idx = (None if t is None else t.to(device) for t in (self.zeros, self.g_idx))
        return replace(
            self,
            qweight=self.qweight.to(device),
            scales=self.scales.to(device),
            zeros=zeros,
            g_idx=g_idx,
            bias=bias,
        )

    def multiply(self, x: Tensor) -> Tensor:
        """Multiply [T, K] → [T, N]."""
        return linear_w4a16(
            x, self.qweight, self.scales, self.zeros, self.group_size, self.g_idx, self.bias
        )

    def multiply_in_fp32(self, x: Tensor) -> Tensor:
        return self.multiply(x.float())

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """Compute the plain weight [N, K] in new memory, without the bias."""
        shape = (self.out_features, self.in_features)
        weight = torch.empty(shape, dtype=dtype, device=self.qweight.device)
        for some in chunks(*shape):
            zeros = None if self.zeros is None else self.zeros[:, some]
            weight[some] = dequantize(
                self.qweight[:, some], self.scales[:, some], zeros, self.group_size, self.g_idx
            ).T
        return weight


@dataclass(frozen=True, slots=True)
class GroupPanels:
    """The same numbers in panels, for a CPU."""

    state: PanelsState
    order: Tensor | None
    """[K], the input that lies at each place; None if groups are runs of inputs."""

    @classmethod
    def of(cls, weight: GroupedWeight, bias: Tensor | None) -> "GroupPanels | None":
        """Arrange a weight in panels; None where no order of inputs lets each 32 neighbours share a
        scale."""
        found = groups_of_blocks(weight.in_features, weight.group_size, weight.g_idx)
        if found is None:
            return None
        order, groups = found
        return cls(PanelsState.of(_panels(weight, groups, order), bias), order)

    def multiply(self, x: Tensor) -> Tensor:
        """Multiply [T, K] → [T, N]."""
        return self.state.multiply(self._ordered(x))

    def multiply_in_fp32(self, x: Tensor) -> Tensor:
        return self.state.multiply(self._ordered(x), fp32_out=True)

    def _ordered(self, x: Tensor) -> Tensor:
        return x if self.order is None else x.index_select(1, self.order)


def is_slower_packed(
    layers: Iterable[QuantizedLayer], dtype: torch.dtype, *, is_symmetric: bool
) -> bool:
    """Whether packed products are slower than plain ones on this CPU."""
    like = GGUFType.Q4_0 if is_symmetric else GGUFType.Q4_K
    return is_slower_packed_like(layers, dtype, lambda _: like)


def is_slower_packed_like(
    layers: Iterable[QuantizedLayer],
    dtype: torch.dtype,
    like: Callable[[QuantizedLayer], GGUFType],
) -> bool:
    """Whether packed products are slower than plain ones on this CPU. Without panels each product
    unpacks the weights again.

    Args:
        like: returns the GGUF type with the panels of a layer.
    """
    if not takes_panels():
        return True
    num_weights = Counter[GGUFType]()
    for layer in layers:
        num_weights[like(layer)] += layer.out_features * layer.in_features
    return bool(num_weights) and are_panels_slower(num_weights, dtype)


def groups_of_blocks(
    in_features: int, group_size: int, g_idx: Tensor | None
) -> tuple[Tensor | None, Tensor] | None:
    """Find an order of inputs in which each 32 neighbours share a group, and the group of each 32.
    Return None if there is none.

    Args:
        g_idx: the group of each input; None if they are runs of `group_size` in their own order, in
            which case the order returned is None too.
    """
    if in_features % BLOCK:
        return None
    if g_idx is None:
        order, groups = None, torch.arange(in_features) // group_size
    else:
        order = torch.argsort(g_idx, stable=True).int()
        groups = g_idx[order].long()
    blocks = groups.view(-1, BLOCK)
    return (order, blocks[:, 0]) if bool((blocks == blocks[:, :1]).all()) else None


def scales_of_panels(scales: Tensor) -> Tensor:
    """Convert scales to fp16 if that holds them all, which is nearly always so for bf16; else to
    fp32."""
    if scales.dtype not in FP16_SCALES:
        return scales.float()
    half = scales.half()
    return half if torch.equal(half.to(scales.dtype), scales) else scales.float()


def takes_panels() -> bool:
    """Whether products on this CPU use panels; otherwise they unpack the weights each time."""
    return native.library() is not None


def panel_format(scale_dtype: torch.dtype, *, is_symmetric: bool) -> PanelFormat:
    """Return the panel format of weights with such scales; bf16 scales are ones that fp16 can
    hold."""
    return SYMMETRIC if is_symmetric and scale_dtype in FP16_SCALES else ASYMMETRIC


def bits_of_nibbles(
    in_features: int, group_size: int, scale_dtype: torch.dtype, device: str, *, is_symmetric: bool
) -> float:
    """Return bits per weight in memory, scales included.

    Args:
        device: `cpu` or `cuda`.
    """
    fits = group_size % BLOCK == 0 and in_features % BLOCK == 0
    if device == "cpu" and takes_panels() and fits:
        return panel_format(scale_dtype, is_symmetric=is_symmetric).bits_per_weight
    group_bits = 8 * scale_dtype.itemsize + (0 if is_symmetric else 8)
    return BITS + group_bits * math.ceil(in_features / group_size) / in_features


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedMethod(LinearMethod[State]):
    """The common part of such formats: a layer's groups and its memory."""

    group_size: int
    """Inputs that share a scale; -1 for all."""
    scale_dtype: torch.dtype
    device: str
    """The device of the weights, `cpu` or `cuda`."""

    @property
    def is_symmetric(self) -> bool:
        """Whether zero points are 8 and not kept."""
        return False

    def run_of(self, in_features: int) -> int:
        """Return the inputs of a group, at most those of the layer."""
        return in_features if self.group_size == -1 else self.group_size

    def num_groups(self, in_features: int) -> int:
        return math.ceil(in_features / self.run_of(in_features))

    def bits_per_weight(self, dtype_bytes: int) -> float:
        """Return the bits per weight of a large layer."""
        return self._bits(1 << 20)

    def num_bytes(self, out_features: int, in_features: int, dtype_bytes: int) -> float:
        return out_features * in_features * self._bits(in_features) / 8

    def _bits(self, in_features: int) -> float:
        """Return the bits per weight."""
        return bits_of_nibbles(
            in_features,
            self.run_of(in_features),
            self.scale_dtype,
            self.device,
            is_symmetric=self.is_symmetric,
        )

    @property
    def takes_plain_weights(self) -> bool:
        return False


def packed_layers(headers: Headers) -> list[str]:
    """Return the names of layers that have a `qweight`; models differ in which layers they leave
    out."""
    names = [name for name in headers if name.endswith(".qweight")]
    return [name.removesuffix(".qweight") for name in names]


def packed_shape(kind: str, name: str, headers: Headers) -> tuple[int, int]:
    """Return the shape of a layer's `qweight`.

    Raises:
        ShapeMismatch: it is not a matrix.
    """
    shape = headers[f"{name}.qweight"].shape
    if not is_matrix(shape):
        raise ShapeMismatch(f"{name}.qweight has shape {shape}; for {kind} it must be a matrix")
    return shape[0], shape[1]


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether the shape is that of a matrix that is not empty."""
    return len(shape) == 2 and 0 not in shape


def stored_scale_dtype(name: str, headers: Headers) -> torch.dtype:
    """Return the dtype of a layer's `scales`.

    Raises:
        ShapeMismatch: the dtype is not supported.
    """
    found = headers[f"{name}.scales"].type
    if found not in SCALE_DTYPES:
        raise ShapeMismatch(
            f"{name}.scales has type {found}; it must be one of {', '.join(SCALE_DTYPES)}"
        )
    return SCALE_DTYPES[found]


def check_group_size(kind: str, size: object) -> None:
    """Check a configuration's group size.

    Raises:
        ModelLoadError: no layer can have such groups.
    """
    is_size = isinstance(size, int) and not isinstance(size, bool)
    if not is_size or not (size == -1 or 0 < size < 1 << 31):  # type: ignore[operator]
        raise unsupported(kind, "group_size", size, "a positive number, or -1 for one group")


def check_finite(name: str, scales: Tensor) -> None:
    """Check that scales are finite.

    Raises:
        CorruptFile: some are not; the message names the tensor.
    """
    if not torch.isfinite(scales).all():
        raise CorruptFile(f"{name} has values that are not numbers; fetch the model again")


def unsupported(kind: str, key: str, value: object, what: str) -> ModelLoadError:
    """The error for a key of `quantization_config` with an unsupported value.

    Args:
        kind: the kind of checkpoint, such as GPTQ.
        what: what the value must be.
    """
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return ModelLoadError(
        f"quantization_config: {key} is {shown}; for {kind} it must be {what}; use another variant "
        f"of the model, or the unquantised one"
    )


def _panels(weight: GroupedWeight, groups: Tensor, order: Tensor | None) -> Panels:
    """Arrange a weight in panels.

    Args:
        groups: the group of each 32 inputs.
        order: the order of the inputs, if it is not their own.
    """
    of_panels = scales_of_panels(weight.scales)
    form = panel_format(of_panels.dtype, is_symmetric=weight.zeros is None)

    def part(some: slice) -> Codes:
        codes = unpack(weight.qweight[:, some]).to(torch.uint8)
        scales = of_panels[:, some][groups].T
        mins = None
        if form is ASYMMETRIC:
            scales = scales.float()
            zeros = SYMMETRIC_ZERO if weight.zeros is None else weight.zeros[:, some][groups].T
            mins = -scales * zeros
        ordered = codes if order is None else codes[order]
        return Codes(
            format=form,
            codes=ordered.T.contiguous(),
            scales=scales.contiguous(),
            mins=None if mins is None else mins.contiguous(),
        )

    return pack_in_parts(weight.out_features, weight.in_features, part)
