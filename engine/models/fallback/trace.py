"""Finds how a model's layers use attention by running its code without weights or numbers.

Keys of config.json would tell this for known architectures only. The code itself tells it for all:
a forward pass over meta tensors reports what each layer passes to the attention interface, and
which keys its mask lets a query see.
"""

import contextlib
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from engine.errors import UnsupportedArchitecture
from engine.models.fallback.architecture import in_words, refusal
from engine.models.fallback.attention import cached_dim

TRACED = "tandem_traced"
_NUM_TOKENS = 4
_MAX_WINDOW = 1 << 17
"""The most positions within which a window is looked for; a longer one counts as none."""
_NO_WINDOW = 0
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
"""Arguments of attention that the paged cache replaces or that have no effect here."""

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""A function of (batch, head, query position, key position) that says whether the query sees the
key."""


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """The sizes and the window of one layer's attention, as the cache needs them."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None


@dataclass(slots=True)
class _Trace:
    architecture: str
    longest: int
    no_window: str
    """Why a mask that is no window cannot be served."""
    layers: dict[int, LayerFacts] = field(default_factory=dict)
    masks: dict[int, tuple[Tensor, int | None]] = field(default_factory=dict)
    """The masks that transformers passes on, by identity, each with the window that it means."""

    def refuse(self, reason: str) -> UnsupportedArchitecture:
        return refusal(self.architecture, reason)


_current: ContextVar[_Trace] = ContextVar("trace")


def trace_layers(architecture: str, model: Any) -> list[LayerFacts]:
    """Examine the layers of a model and return their facts in order.

    Args:
        model: a model of transformers on the meta device, with the attention called `TRACED`.

    Raises:
        UnsupportedArchitecture: the model cannot run on a paged cache; the message says why.
    """
    config = model.config
    no_window = "its attention mask is neither causal nor a sliding window"
    if getattr(config, "is_decoder", None) is False:
        no_window = "it is an encoder, which reads texts in both directions"
    trace = _Trace(architecture, min(config.max_position_embeddings, _MAX_WINDOW), no_window)
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
    except Exception as error:  # transformers' code may fail in any way on strange sizes
        raise trace.refuse(f"it cannot be examined, as {in_words(error)}") from error
    finally:
        _current.reset(token)
    num_layers = config.num_hidden_layers
    if sorted(trace.layers) != list(range(num_layers)):
        raise trace.refuse(
            f"only {len(trace.layers)} of its {num_layers} layers use transformers' attention "
            f"interface; the others keep another kind of state or have attention code of their own"
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
    s_aux: Tensor | None = None,
    alibi: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Stand in for attention and note its arguments."""
    trace = _current.get()
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int) or layer in trace.layers:
        raise trace.refuse("the numbers of its attention layers are missing or repeated")
    unknown = [
        name
        for name, given in others.items()
        if name not in _WITHOUT_MEANING and given is not None and given is not False
    ]
    if "indices" in unknown:
        raise trace.refuse("its attention reads only keys that another part of the model chooses")
    if unknown:
        raise trace.refuse(f"its attention takes the arguments {', '.join(sorted(unknown))}")
    if others.get("is_causal", getattr(module, "is_causal", True)) is False:
        raise trace.refuse(trace.no_window)
    batch, heads, num_tokens, dim = query.shape
    if batch != 1 or num_tokens != _NUM_TOKENS or key.shape[2] != num_tokens:
        raise trace.refuse("its attention does not have one query and one key per token")
    if key.shape[3] != dim or value.shape[1] != key.shape[1] or heads % key.shape[1]:
        raise trace.refuse("its queries, keys and values do not fit each other")
    window = others.get("sliding_window")
    if attention_mask is not None:
        if id(attention_mask) not in trace.masks:
            raise trace.refuse("it changes the mask of its attention")
        window = trace.masks[id(attention_mask)][1]
        if window == _NO_WINDOW:
            raise trace.refuse(trace.no_window)
    size = cached_dim(dim, value.shape[3], alibi is not None)
    trace.layers[layer] = LayerFacts(heads, key.shape[1], size, window)
    return value.new_empty(1, num_tokens, heads, value.shape[3]), None


def _note_mask(*, mask_function: MaskFunction, **others: Any) -> Tensor:
    """Stand in for a mask with a tensor by which `_note_attention` recognises it."""
    trace = _current.get()
    window: int | None = _NO_WINDOW
    # A mask that is no window may belong to attention that a text alone does not use.
    with contextlib.suppress(Exception), torch.device("cpu"):
        window = _window_of(mask_function, trace.longest)
    mask = torch.empty(1, 1, _NUM_TOKENS, _NUM_TOKENS, dtype=torch.bool)
    trace.masks[id(mask)] = mask, window
    return mask


def _window_of(sees: MaskFunction, longest: int) -> int | None:
    """Return the window of the queries, themselves included; None if there is none.

    Raises:
        ValueError: the mask is not that of a window.
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
