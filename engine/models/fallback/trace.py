"""What a model's layers ask of attention: found by running its code without weights or numbers.

Keys of config.json would tell it for known architectures only. The code itself says it for all: a
forward pass over meta tensors reports what each layer hands to the attention interface, and which
keys its mask lets a query see.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from engine.errors import UnsupportedArchitecture
from engine.models.fallback.architecture import refusal

TRACED = "tandem_traced"
_NUM_TOKENS = 4
_MAX_WINDOW = 1 << 17
"""A window is looked for within so many positions; a longer one counts as none."""
_WITHOUT_MEANING = (
    "cache",
    "cache_position",
    "dropout",
    "is_causal",
    "layer_idx",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "past_key_value",
    "past_key_values",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "sliding_window",
    "use_cache",
)
"""What models pass to their attention that the paged cache knows better, or that is for others."""

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query position, key position) → whether the query sees the key."""


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What one layer keeps and looks at."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    """Of queries and keys."""
    window: int | None


@dataclass(slots=True)
class _Trace:
    architecture: str
    longest: int
    layers: dict[int, LayerFacts] = field(default_factory=dict)
    masks: dict[int, tuple[Tensor, int | None]] = field(default_factory=dict)
    """By the identity of what transformers passes on as a mask: it, and the window it means."""

    def refuse(self, reason: str) -> UnsupportedArchitecture:
        return refusal(self.architecture, reason)


_current: ContextVar[_Trace] = ContextVar("trace")


def trace_layers(architecture: str, model: Any) -> list[LayerFacts]:
    """What the layers of a model ask for, in their order.

    Args:
        model: of transformers, on the meta device, with the attention called `TRACED`.

    Raises:
        UnsupportedArchitecture: it cannot run on a paged cache, and why.
    """
    config = model.config
    trace = _Trace(architecture, min(config.max_position_embeddings, _MAX_WINDOW))
    token = _current.set(trace)
    try:
        with torch.device("meta"), torch.inference_mode():
            model.base_model(
                input_ids=torch.zeros(1, _NUM_TOKENS, dtype=torch.int64),
                position_ids=torch.arange(_NUM_TOKENS)[None],
                attention_mask=torch.ones(1, _NUM_TOKENS, dtype=torch.int64),
                use_cache=False,
            )
    except UnsupportedArchitecture:
        raise
    except Exception as error:  # whatever transformers' code makes of a stranger's sizes
        raise trace.refuse(f"it cannot be examined: {type(error).__name__}: {error}") from error
    finally:
        _current.reset(token)
    num_layers = config.num_hidden_layers
    if sorted(trace.layers) != list(range(num_layers)):
        raise trace.refuse(
            f"{len(trace.layers)} of its {num_layers} layers attend by transformers' attention "
            f"interface; others keep a state of another kind, or have code of their own"
        )
    return [trace.layers[layer] for layer in range(num_layers)]


def _note_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """In the place of attention."""
    trace = _current.get()
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int) or layer in trace.layers:
        raise trace.refuse("its layers are not numbered as their caches would be")
    unknown = [
        name
        for name, given in others.items()
        if name not in _WITHOUT_MEANING and given is not None and given is not False
    ]
    if unknown:
        raise trace.refuse(f"its attention takes {', '.join(sorted(unknown))}")
    if others.get("is_causal", getattr(module, "is_causal", True)) is False:
        raise trace.refuse("its layers look ahead")
    batch, heads, num_tokens, dim = query.shape
    if batch != 1 or num_tokens != _NUM_TOKENS or key.shape[2] != num_tokens:
        raise trace.refuse("its layers do not attend token by token")
    if key.shape[3] != dim or value.shape[1] != key.shape[1] or value.shape[3] > dim:
        raise trace.refuse("its queries, keys and values are of different sizes")
    window = others.get("sliding_window")
    if attention_mask is not None:
        if id(attention_mask) not in trace.masks:
            raise trace.refuse("it changes the mask of its attention")
        window = trace.masks[id(attention_mask)][1]
    trace.layers[layer] = LayerFacts(heads, key.shape[1], dim, window)
    return value.new_empty(1, num_tokens, heads, value.shape[3]), None


def _note_mask(*, mask_function: MaskFunction, **others: Any) -> Tensor:
    """In the place of a mask: a tensor by which `_note_attention` knows it again."""
    trace = _current.get()
    try:
        with torch.device("cpu"):
            window = _window_of(mask_function, trace.longest)
    except Exception as error:
        raise trace.refuse("its attention sees keys in a pattern that is no window") from error
    mask = torch.empty(1, 1, _NUM_TOKENS, _NUM_TOKENS, dtype=torch.bool)
    trace.masks[id(mask)] = mask, window
    return mask


def _window_of(sees: MaskFunction, longest: int) -> int | None:
    """How far queries look back, themselves included; None: at all.

    Raises:
        ValueError: not every query sees exactly the keys of such a window.
    """

    def seen(query: int) -> Tensor:
        zero = torch.zeros((), dtype=torch.int64)
        keys = torch.arange(longest)
        return sees(zero, zero, torch.tensor(query), keys).broadcast_to(keys.shape)

    window = int(seen(longest - 1).sum())
    borders = {0, 1, 2, longest // 3, window - 1, window, window + 1, 2 * window, longest - 1}
    keys = torch.arange(longest)
    for query in sorted(border for border in borders if 0 <= border < longest):
        expected = (keys <= query) & (keys > query - window)
        if not torch.equal(seen(query), expected):
            raise ValueError("no window")
    return None if window == longest else window


AttentionInterface.register(TRACED, _note_attention)
AttentionMaskInterface.register(TRACED, _note_mask)
