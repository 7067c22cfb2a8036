"""Builds a class of transformers without memory for its weights, with our layers in it."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from engine.models.fallback.architecture import causal_class, read_config, refusal
from engine.models.fallback.layers import (
    FallbackExperts,
    KeptEmbedding,
    OwnEmbedding,
    replacement,
    replacement_for_head,
)
from engine.models.fallback.own_attention import has_own_attention, open_attention
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot
from engine.quantization.method import TensorSpec

HEAD = "lm_head"
BEFORE_HEAD = "before_head"
"""Our name for another part of a model that is called `HEAD` there."""
_LEFT_EMPTY = (torch.empty, torch.rand, torch.randn)
"""The functions with which layers create weights; buffers are created by others."""


def create_class(
    architecture: str, values: Mapping[str, Any], *, attention: str, experts: str
) -> Any:
    """Create an instance as transformers builds it.

    Args:
        values: the values of config.json.
        attention, experts: the implementations of transformers that run.

    Raises:
        ModelLoadError: see `read_config`.
    """
    config = read_config(architecture, values)
    config._attn_implementation = "eager" if has_own_attention(config) else attention
    config._experts_implementation = experts
    model = causal_class(architecture)(config)  # type: ignore[misc]
    if model.base_model is model and hasattr(model, "model"):
        model.base_model_prefix = "model"  # Mllama's is that of another class
    if has_own_attention(config):
        open_attention(model, attention)
    return model


def build(
    architecture: str,
    values: Mapping[str, Any],
    options: WeightOptions,
    *,
    windows: Sequence[int | None],
    embedding: str,
    head: str,
    tied: bool,
    experts: Collection[str],
    attention: str,
) -> Any:
    """Build the class with our layers in it. Owners of weights are at the checkpoint's names.

    Args:
        windows: the window of each call of attention.
        embedding, head: paths of the input embedding and of the output layer; the latter's tensors
            are called `HEAD` here.
        tied: whether the output layer shares the input embedding's matrix.
        experts: paths of the experts that our layers replace.
        attention: the implementation of transformers that runs.

    Raises:
        UnsupportedArchitecture: parts of the class cannot be replaced.
    """
    with _default_dtype(options.dtype), _NoWeights():
        causal = create_class(architecture, values, attention=attention, experts="eager")
    causal.eval().requires_grad_(False)
    empty = [name for name, buffer in causal.named_buffers() if buffer.is_meta]
    if empty:
        raise refusal(architecture, f"it needs code of its own to fill {empty[0]}")
    if head != HEAD and HEAD in causal._modules:
        # The loader knows the output layer by this name; the model's code still finds its own.
        object.__setattr__(causal, HEAD, causal._modules.pop(HEAD))
        causal._modules[BEFORE_HEAD] = getattr(causal, HEAD)
    places: dict[str, nn.Module] = {}
    words: nn.Embedding = causal.get_submodule(embedding)
    rows: OwnEmbedding = KeptEmbedding(words)
    if type(words) is nn.Embedding:
        rows = places[embedding] = OwnEmbedding(words.num_embeddings, words.embedding_dim)
    for path in experts:
        places[path] = FallbackExperts.replacing(causal.get_submodule(path))
    within = tuple(f"{path}." for path in experts)
    for path, module in causal.named_modules():
        if path.startswith(within) or path in experts:
            continue
        if path != head and (ours := replacement(path, module)) is not None:
            places[path] = ours
        module.tandem_windows = windows
    output = replacement_for_head(causal.get_output_embeddings(), rows, tied=tied)
    for path, module in places.items():
        causal.set_submodule(path, module)
    parent, _, name = head.rpartition(".")
    owner = causal.get_submodule(parent)
    del owner._modules[name]
    causal._modules[HEAD] = output
    if head != HEAD:
        # The model's code finds it at its own place, the loader and the plan of weights as `HEAD`.
        object.__setattr__(owner, name, output)
    for module in causal.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(options.device)
    causal.other_tensors = OtherTensors(causal)
    return causal


class OtherTensors(nn.Module, WeightOwner):
    """The weights of a model that none of our layers owns: norms, position embeddings, experts."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        # Kept in a tuple so that the model does not become its own submodule.
        self._model = (model,)

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        [model] = self._model
        in_fp32 = tuple(model._keep_in_fp32_modules_strict or ())
        slots = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            dtype = torch.float32 if any(part in name for part in in_fp32) else options.dtype
            dtype = dtype if tensor.is_floating_point() else tensor.dtype
            fill = partial(self._fill, name, dtype, options.device)
            slots[name] = WeightSlot(TensorSpec(shape=tuple(tensor.shape)), fill)
        return slots

    def _fill(self, name: str, dtype: torch.dtype, device: torch.device, tensor: Tensor) -> None:
        path, _, last = name.rpartition(".")
        module = self._model[0].get_submodule(path)
        # Always new memory, since the tensor may be a mapped file.
        value = tensor.to(device=device, dtype=dtype, copy=True)
        if last in module._parameters:
            module._parameters[last] = nn.Parameter(value, requires_grad=False)
        else:
            module._buffers[last] = value


class _NoWeights(TorchFunctionMode):
    """A mode in which new weights have no memory."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _LEFT_EMPTY:
            kwargs["device"] = "meta"
        elif func is Tensor.copy_ and args[1].is_meta:
            return args[0]
        return func(*args, **kwargs)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Give buffers the model's dtype, as transformers does when it loads a model."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
