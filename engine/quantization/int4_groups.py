"""4-bit weights whose inputs share a scale and a zero point by groups, as GPTQ and AWQ have them.

`weight = scale * (code - zero)`. On a GPU they stay as `kernels.linear_w4a16` takes them; on a CPU
they are brought into panels (`kernels.linear_panels`), which hold the same numbers.
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
"""For fp16 scales; as GGUF's Q4_0."""
ASYMMETRIC = PanelFormat(bits=BITS, scale_dtype=torch.float32, has_min=True)
"""A minimum is a scale times a zero point, which fp32 holds exactly; as GGUF's Q4_K."""
FP16_SCALES = (torch.float16, torch.bfloat16)
SCALE_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True, slots=True)
class GroupedWeight:
    """What `kernels.linear_w4a16` takes beside activations, of outputs whose inputs have the same
    groups."""

    qweight: Tensor
    scales: Tensor
    zeros: Tensor | None
    """None: 8 everywhere."""
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
        """Of neighbouring outputs' tensors, in the kernel's layouts."""
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
        """The same where products are made of it, for activations in `dtype`."""
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
        """[T, K] → [T, N]."""
        return linear_w4a16(
            x, self.qweight, self.scales, self.zeros, self.group_size, self.g_idx, self.bias
        )

    def multiply_in_fp32(self, x: Tensor) -> Tensor:
        return self.multiply(x.float())

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """[N, K], new memory; the bias is left out."""
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
    """[K]: the input that lies at each place, where groups are no runs of inputs."""

    @classmethod
    def of(cls, weight: GroupedWeight, bias: Tensor | None) -> "GroupPanels | None":
        """None where 32 neighbours do not share a scale, whatever the order."""
        found = groups_of_blocks(weight.in_features, weight.group_size, weight.g_idx)
        if found is None:
            return None
        order, groups = found
        return cls(PanelsState.of(_panels(weight, groups, order), bias), order)

    def multiply(self, x: Tensor) -> Tensor:
        """[T, K] → [T, N]."""
        return self.state.multiply(self._ordered(x))

    def multiply_in_fp32(self, x: Tensor) -> Tensor:
        return self.state.multiply(self._ordered(x), fp32_out=True)

    def _ordered(self, x: Tensor) -> Tensor:
        return x if self.order is None else x.index_select(1, self.order)


def is_slower_packed(
    layers: Iterable[QuantizedLayer], dtype: torch.dtype, *, is_symmetric: bool
) -> bool:
    """On a CPU, than plain."""
    like = GGUFType.Q4_0 if is_symmetric else GGUFType.Q4_K
    return is_slower_packed_like(layers, dtype, lambda _: like)


def is_slower_packed_like(
    layers: Iterable[QuantizedLayer],
    dtype: torch.dtype,
    like: Callable[[QuantizedLayer], GGUFType],
) -> bool:
    """On a CPU, than plain: without panels each product unpacks the weights anew.

    Args:
        like: the GGUF type whose panels a layer's are like.
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
    """In which order 32 neighbours share a group, and the group of each 32; None: in none.

    Args:
        g_idx: the group of each input; None: they are runs of `group_size`, in their own order,
            for which None stands.
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
    """In fp16 if that holds them all, as it nearly always does those in bf16; else in fp32."""
    if scales.dtype not in FP16_SCALES:
        return scales.float()
    half = scales.half()
    return half if torch.equal(half.to(scales.dtype), scales) else scales.float()


def takes_panels() -> bool:
    """Whether products on this CPU are made of panels; else they unpack the weights each time."""
    return native.library() is not None


def panel_format(scale_dtype: torch.dtype, *, is_symmetric: bool) -> PanelFormat:
    """Of weights with such scales, which in bf16 are ones that fp16 holds."""
    return SYMMETRIC if is_symmetric and scale_dtype in FP16_SCALES else ASYMMETRIC


def bits_of_nibbles(
    in_features: int, group_size: int, scale_dtype: torch.dtype, device: str, *, is_symmetric: bool
) -> float:
    """Of a weight in memory, scales included.

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
    """What such formats have in common: how many groups a layer has, and what it takes."""

    group_size: int
    """Inputs that share a scale; -1: all."""
    scale_dtype: torch.dtype
    device: str
    """That keeps them: `cpu` or `cuda`."""

    @property
    def is_symmetric(self) -> bool:
        """Zero points are 8, and not kept."""
        return False

    def run_of(self, in_features: int) -> int:
        """Inputs of a group, where there are that many."""
        return in_features if self.group_size == -1 else self.group_size

    def num_groups(self, in_features: int) -> int:
        return math.ceil(in_features / self.run_of(in_features))

    def bits_per_weight(self, dtype_bytes: int) -> float:
        """Of a large layer."""
        return self._bits(1 << 20)

    def num_bytes(self, out_features: int, in_features: int, dtype_bytes: int) -> float:
        return out_features * in_features * self._bits(in_features) / 8

    def _bits(self, in_features: int) -> float:
        """Per weight."""
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
    """Names of the layers that have a `qweight`: which are left out differs between models."""
    names = [name for name in headers if name.endswith(".qweight")]
    return [name.removesuffix(".qweight") for name in names]


def packed_shape(kind: str, name: str, headers: Headers) -> tuple[int, int]:
    """Of a layer's `qweight`.

    Raises:
        ShapeMismatch: it is no matrix.
    """
    shape = headers[f"{name}.qweight"].shape
    if not is_matrix(shape):
        raise ShapeMismatch(
            f"{name}.qweight has shape {shape}; {kind} packs a matrix of two dimensions"
        )
    return shape[0], shape[1]


def is_matrix(shape: tuple[int, ...]) -> bool:
    """With numbers in it."""
    return len(shape) == 2 and 0 not in shape


def stored_scale_dtype(name: str, headers: Headers) -> torch.dtype:
    """Of a layer's `scales`.

    Raises:
        ShapeMismatch: one that is not supported.
    """
    found = headers[f"{name}.scales"].type
    if found not in SCALE_DTYPES:
        raise ShapeMismatch(f"{name}.scales holds {found}; {', '.join(SCALE_DTYPES)} are supported")
    return SCALE_DTYPES[found]


def check_group_size(kind: str, size: object) -> None:
    """
    Raises:
        ModelLoadError: no layer has such groups.
    """
    is_size = isinstance(size, int) and not isinstance(size, bool)
    if not is_size or not (size == -1 or 0 < size < 1 << 31):  # type: ignore[operator]
        raise unsupported(kind, "group_size", size, "a positive number, and -1 for one group, are")


def check_finite(name: str, scales: Tensor) -> None:
    """
    Raises:
        CorruptFile: names the tensor.
    """
    if not torch.isfinite(scales).all():
        raise CorruptFile(f"{name} has values that are not numbers; fetch the model again")


def unsupported(kind: str, key: str, value: object, what: str) -> ModelLoadError:
    """What to say of a key of `quantization_config`.

    Args:
        kind: of checkpoint, such as GPTQ.
        what: is supported, with its verb.
    """
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return ModelLoadError(
        f"quantization_config: {key} is {shown}; of {kind} {what} supported; use another variant "
        f"of the model, or the unquantised one"
    )


def _panels(weight: GroupedWeight, groups: Tensor, order: Tensor | None) -> Panels:
    """
    Args:
        groups: of each 32 inputs.
        order: of the inputs, if not their own.
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
