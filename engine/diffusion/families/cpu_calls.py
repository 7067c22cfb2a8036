"""Computes products and attention of models whose layers stay diffusers' own."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from engine.diffusion.families import onednn
from kernels import attention


class CpuCalls(TorchFunctionMode):
    """Within it, `F.linear` is oneDNN's and attention without a mask `kernels.attention`, on CPUs.

    PyTorch's own take two to three times as long on AMD's processors. Other calls, and these on
    other devices or if gradients are wanted, are PyTorch's.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        own = _OWN.get(func)
        found = None if own is None or torch.is_grad_enabled() else own(*args, **kwargs)
        return func(*args, **kwargs) if found is None else found


def _linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor | None:
    """The product, or None if PyTorch computes it: packed weights have classes of their own."""
    if type(weight) not in _PLAIN or not onednn.can_multiply(input, weight):
        return None
    return onednn.multiply(input, weight, bias)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **others: object,
) -> torch.Tensor | None:
    """The mixed values `[R, H, Q, D]`, or None if PyTorch computes them."""
    is_bare = attn_mask is None and not dropout_p and not is_causal and scale is None
    is_alike = query.ndim == 4 and key.shape == value.shape == (*query.shape[:2], *key.shape[2:])
    if not (query.is_cpu and is_bare and is_alike and query.shape[3] == key.shape[3]):
        return None
    mixed = attention(query, key, value)
    return mixed.view(*mixed.shape[:2], query.shape[1], -1).transpose(1, 2)


_PLAIN = (torch.Tensor, torch.nn.Parameter)
_OWN: dict[Callable[..., Any], Callable[..., torch.Tensor | None]] = {
    F.linear: _linear,
    F.scaled_dot_product_attention: _attention,
}
