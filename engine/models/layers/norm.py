"""Normalisations with learned scales."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.forward_context import NO_CONTEXT, ForwardContext
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot
from engine.quantization.method import TensorSpec
from kernels import add_rms_norm, rms_norm


class RmsNorm(nn.Module, WeightOwner):
    """RMS norm over the last dimension, of `size` elements.

    Args:
        offset: added to the checkpoint's weights, which some families store minus 1.
        learned: whether the checkpoint has weights; they are 1 otherwise.
    """

    weight: Tensor

    def __init__(self, size: int, eps: float, *, offset: float = 0.0, learned: bool = True) -> None:
        super().__init__()
        self.size = size
        self.eps = eps
        self.offset = offset
        self._learned = learned
        self.takes_adapters = learned
        """Whether the norm is called with a step's context."""
        self.path = ""
        """The path in the model, set by `create_weights`."""

    def forward(self, x: Tensor, ctx: ForwardContext = NO_CONTEXT) -> Tensor:
        """Map [..., C] to contiguous [..., C], with the rows' own norms where their adapters bring
        one."""
        return self._adapted(rms_norm(x, self.weight, self.eps), x, ctx)

    __call__ = forward

    def add(self, x: Tensor, residual: Tensor, ctx: ForwardContext = NO_CONTEXT) -> Tensor:
        """Add `x` to the residual stream, in place, and normalise the sum. Both are [T, C]."""
        return self._adapted(add_rms_norm(x, residual, self.weight, self.eps), residual, ctx)

    def own_copy(self, tensor: Tensor) -> Tensor:
        """Convert an adapter's replacement of the weight."""
        copy = tensor.to(self.weight.device, self.weight.dtype)
        return copy + self.offset if self.offset else copy

    def _adapted(self, y: Tensor, x: Tensor, ctx: ForwardContext) -> Tensor:
        if ctx.adapters is not None:
            ctx.adapters.take_copies(self.path, y, lambda weight: rms_norm(x, weight, self.eps))
        return y

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        self.path = path
        # On a CPU weights are fp32, in which the kernel computes: others would be converted in each
        # call. With an offset they are fp32 everywhere, since a 16-bit sum would lose bits of its
        # small part.
        is_fp32 = options.device.type == "cpu" or self.offset != 0.0
        dtype = torch.float32 if is_fp32 else options.dtype
        self.weight = torch.ones(self.size, dtype=dtype, device=options.device)
        if not self._learned:
            return {}
        return {f"{path}.weight": WeightSlot(TensorSpec(shape=(self.size,)), self._fill)}

    def _fill(self, tensor: Tensor) -> None:
        self.weight.copy_(tensor)
        if self.offset:
            self.weight += self.offset


class GroupedRmsNorm(RmsNorm):
    """RMS norms over `num_groups` equal parts of the last dimension."""

    _ones: Tensor

    def __init__(self, size: int, eps: float, num_groups: int) -> None:
        super().__init__(size, eps)
        self._num_groups = num_groups

    def forward(self, x: Tensor, ctx: ForwardContext = NO_CONTEXT) -> Tensor:
        """Map [T, C] to contiguous [T, C]. Adapters bring no norm of their own."""
        if self._num_groups == 1:
            return rms_norm(x, self.weight, self.eps)
        parts = x.view(-1, self.size // self._num_groups)
        normed = rms_norm(parts, self._ones, self.eps).view(x.shape)
        return (normed * self.weight).to(x.dtype)

    __call__ = forward

    def process_weights_after_loading(self) -> None:
        self._ones = torch.ones_like(self.weight[: self.size // self._num_groups])


class LearnedVector(nn.Module, WeightOwner):
    """A learned vector of `size` numbers, which the checkpoint stores under the path itself."""

    weight: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        self.weight = torch.empty(self.size, dtype=options.dtype, device=options.device)
        return {path: WeightSlot(TensorSpec(shape=(self.size,)), self._fill)}

    def _fill(self, tensor: Tensor) -> None:
        self.weight.copy_(tensor)


class LayerNorm(nn.Module, WeightOwner):
    """Layer norm over the last dimension, of `size` elements, with a learned shift if `shifts`.

    PyTorch's implementation computes each row separately, in an order that follows from `size`.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, size: int, eps: float, *, shifts: bool = True) -> None:
        super().__init__()
        self.size = size
        self.eps = eps
        self.bias = None
        self._shifts = shifts

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., C] to [..., C]."""
        return F.layer_norm(x, (self.size,), self.weight, self.bias, self.eps)

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        def create() -> Tensor:
            return torch.empty(self.size, dtype=options.dtype, device=options.device)

        spec = TensorSpec(shape=(self.size,))
        self.weight = create()
        slots = {f"{path}.weight": WeightSlot(spec, self._fill_weight)}
        if self._shifts:
            self.bias = create()
            slots[f"{path}.bias"] = WeightSlot(spec, self._fill_bias)
        return slots

    def _fill_weight(self, tensor: Tensor) -> None:
        self.weight.copy_(tensor)

    def _fill_bias(self, tensor: Tensor) -> None:
        assert self.bias is not None
        self.bias.copy_(tensor)
