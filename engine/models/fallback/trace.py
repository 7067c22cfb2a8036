"""Finds how a model's layers use attention by running its code without weights or numbers.

Keys of config.json would tell this for known architectures only. The code itself tells it for all:
a forward pass over meta tensors reports what each layer passes to the attention interface, and
which keys its mask lets a query see.
"""

import contextlib
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface

from engine.errors import UnsupportedArchitecture
from engine.models.fallback.architecture import in_words, refusal
from engine.models.fallback.attention import cached_dim
from engine.models.fallback.own_attention import has_own_attention
from engine.models.fallback.own_cache import CacheLayout
from engine.models.fallback.states import StateModule, TracedStates, has_states

TRACED = "tandem_traced"
_NUM_TOKENS = 4
_MAX_WINDOW = 1 << 17
"""The most positions within which a window is looked for; a longer one counts as none."""
_NO_WINDOW = 0
ENCODER = "it is an encoder, which reads texts in both directions"
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
    """The sizes and the window of one call of attention, as the cache needs them."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None


@dataclass(frozen=True, slots=True)
class Findings:
    """What a model keeps in our cache.

    Attributes:
        layers: the places in the cache: those with keys and values, then those with states.
        num_attending: the number of places with keys and values.
        state_size: the most numbers of states of a layer.
        modules: the modules that read and write states, by path.
        own_cache: how the model is served if it runs on transformers' own cache.
    """

    layers: list[LayerFacts]
    num_attending: int
    state_size: int
    modules: dict[str, StateModule] = field(default_factory=dict)
    own_cache: CacheLayout | None = None

    @classmethod
    def of_cache(cls, layout: CacheLayout) -> Self:
        """What a model keeps that runs on transformers' own cache."""
        attending = [
            LayerFacts(shape.num_heads, shape.num_heads, shape.head_dim, None)
            for shape in (one.shape for one in layout.growing)
        ]
        nothing = LayerFacts(1, 1, 2, None)
        return cls(
            layers=attending + [nothing] * len(layout.stateful),
            num_attending=len(attending),
            state_size=max((one.states.size for one in layout.stateful), default=0),
            own_cache=layout,
        )


@dataclass(slots=True)
class _Trace:
    architecture: str
    longest: int
    no_window: str
    """Why a mask that is no window cannot be served."""
    calls: list[LayerFacts] = field(default_factory=list)
    layers: set[int] = field(default_factory=set)
    """The numbers of the layers that attend."""
    masks: dict[int, tuple[Tensor, int | None]] = field(default_factory=dict)
    """The masks that transformers passes on, by identity, each with the window that it means."""

    def refuse(self, reason: str) -> UnsupportedArchitecture:
        return refusal(self.architecture, reason)


_current: ContextVar[_Trace] = ContextVar("trace")


def trace_layers(architecture: str, model: Any) -> Findings:
    """Examine the layers of a model.

    Args:
        model: a model of transformers on the meta device, with the attention called `TRACED`. The
            dtype of its weights changes if it has states.

    Raises:
        UnsupportedArchitecture: the model cannot run on a paged cache; the message says why.
    """
    config = model.config
    no_window = "its attention mask is neither causal nor a sliding window"
    trace = _Trace(
        architecture,
        min(config.max_position_embeddings, _MAX_WINDOW),
        ENCODER if is_encoder(config) else no_window,
    )
    skip_experts(model)
    mask_device = "meta" if has_own_attention(config) else "cpu"
    states = TracedStates(config) if has_states(config) else None
    watched = contextlib.nullcontext() if states is None else states.watching(model)
    token = _current.set(trace)
    try:
        with torch.device("meta"), torch.inference_mode(), watched, _NoNumbers():
            model.base_model(
                input_ids=torch.zeros(1, _NUM_TOKENS, dtype=torch.int64),
                position_ids=torch.arange(_NUM_TOKENS)[None],
                # Some code asks whether all are ones, and some computes with it.
                attention_mask=torch.ones(1, _NUM_TOKENS, dtype=torch.int64, device=mask_device),
                **({} if states is None else {"cache": states}),
                use_cache=False,
            )
    except UnsupportedArchitecture:
        raise
    except Exception as error:  # transformers' code may fail in any way on strange sizes
        raise trace.refuse(f"it cannot be examined, as {in_words(error)}") from error
    finally:
        _current.reset(token)
    modules = {} if states is None else states.modules(len(trace.calls))
    num_layers = config.num_hidden_layers - len(getattr(config, "cross_attention_layers", ()))
    num_known = len(trace.layers | {one.layer for one in modules.values()})
    if num_known < num_layers and len(trace.calls) < num_layers:
        own_code = (
            f"only {num_known} of its {num_layers} layers use transformers' attention interface "
            f"or cache; the others keep what they remember in a way of their own"
        )
        raise trace.refuse(own_code)
    nothing = LayerFacts(1, 1, 2, None)
    return Findings(
        layers=trace.calls + [nothing] * len({one.place for one in modules.values()}),
        num_attending=len(trace.calls),
        state_size=max((one.states.size for one in modules.values()), default=0),
        modules=modules,
    )


def is_encoder(config: Any) -> bool:
    """Whether a configuration says that the model reads texts in both directions. Some say so of
    models that do not."""
    return getattr(config, "is_decoder", None) is False


class _NoNumbers(TorchFunctionMode):
    """A mode in which tensors without memory have no numbers, instead of failing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.tolist and args[0].is_meta:
            return []
        return func(*args, **(kwargs or {}))


def skip_experts(model: nn.Module) -> None:
    """Let the experts of a model return tensors without numbers, as they look at numbers to decide
    what to compute."""
    for module in model.modules():
        takes = inspect.signature(module.forward).parameters
        if "top_k_index" in takes:
            module.forward = lambda hidden_states, *_: torch.empty_like(hidden_states)
        elif "expert_size" in takes:  # JetMoe's
            size = module.output_size
            module.forward = lambda rows, _, size=size: rows.new_empty(len(rows), size)


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
    if isinstance(layer, int):
        trace.layers.add(layer)
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
    trace.calls.append(LayerFacts(heads, key.shape[1], size, window))
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
