"""Products by oneDNN on a CPU, also where PyTorch's own choice is another library."""

import functools

import torch
import torch.nn.functional as F


def can_multiply(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether oneDNN multiplies both on this processor, and no gradients are wanted."""
    is_usual = x.is_cpu and x.dtype is weight.dtype and not torch.is_grad_enabled()
    return is_usual and x.dtype in _dtypes()


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`F.linear` of `[..., in]` by `[out, in]`, if `can_multiply`.

    In fp32 `F.linear` calls MKL, which has half of oneDNN's speed on AMD's processors; in bf16 it
    copies the bias to each row first, which oneDNN adds while it multiplies.
    """
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`multiply`, or PyTorch's product where oneDNN cannot."""
    by = multiply if can_multiply(x, weight) else F.linear
    return by(x, weight, bias)


@functools.cache
def _dtypes() -> frozenset[torch.dtype]:
    is_there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not is_there or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return frozenset()
    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return frozenset({torch.float32, torch.bfloat16} if has_bf16 else {torch.float32})
