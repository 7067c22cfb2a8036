"""Decides from headers how a text model's weights will be kept, before any weight is read."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from engine.contract.resolved_config import MachineFacts
from engine.contract.text_settings import Quantization, TokenSettings
from engine.errors import InsufficientMemory, ModelLoadError
from engine.models.config import ModelConfig
from engine.quantization.choice import resolve_quantization
from engine.quantization.format import Headers, StoredFormat, TensorHeader
from engine.quantization.formats import FORMATS
from engine.quantization.method import LinearMethod
from engine.quantization.plain import UnquantizedMethod
from engine.quantization.plan import (
    OUTPUT_LAYER,
    PICTURE_ENCODER,
    Layers,
    Shapes,
    kept_by,
    made_at_load,
    num_bytes,
    unpacked,
)
from engine.quantization.registry import detect, stored_format
from engine.runtime.device import torch_dtype
from engine.weights.loader import quantization_config, weight_headers
from engine.weights.source import Checkpoint
from engine.weights.stored_bits import stored_bits, stored_type
from kernels import _triton, native

HEAD = OUTPUT_LAYER

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPlan:
    """How a checkpoint's weights will be kept."""

    quantization: Quantization
    """The format, never auto."""
    shapes: Shapes
    layers: Layers
    """The quantised layers."""
    packed: Collection[str] = ()
    """The layers whose weights the file's reader must leave packed."""
    stored: Quantization = "none"
    """The checkpoint's own format."""
    could_stay_packed: bool = False
    """Whether weights are plain only because that is faster."""
    stored_bits: float | None = None
    """The bits per weight in the checkpoint (`engine.weights.stored_bits`)."""
    stored_type: str = ""
    """The type of most of the checkpoint's weights."""
    embedding: str
    """The checkpoint's name of the input embedding."""
    tables: tuple[str, ...] = ()
    """The checkpoint's names of further embeddings."""
    copies_embedding: bool = False
    """Whether the output layer is a packed copy of the embedding, which is plain."""
    leaves_out_embedding: bool = False
    """Whether the embedding's rows are looked up in the output layer, which stays packed."""

    def method_for(self, name: str) -> LinearMethod[Any] | None:
        """The method of a layer; None if it stays plain."""
        layer = self.layers.get(name)
        return None if layer is None else layer.method

    def num_bytes(self, dtype_bytes: int, *, with_head: bool = True) -> int:
        """The memory of all weights; numbers that are not quantised take `dtype_bytes`.

        Args:
            with_head: whether to count the output layer, which a tied embedding may have in
                addition or instead of its own rows.
        """
        embedding = math.prod(self.shapes.get(f"{self.embedding}.weight", (0,)))
        times = self.copies_embedding - self.leaves_out_embedding if with_head else 0
        found = num_bytes(self.shapes, self.layers, dtype_bytes)
        return found + times * embedding * dtype_bytes

    def whole_bytes(self, dtype_bytes: int) -> int:
        """The most memory of what each tensor-parallel rank keeps whole: embeddings, and an output
        layer tied to them."""
        embedding = math.prod(self.shapes.get(f"{self.embedding}.weight", (0,)))
        own = (1 + self.copies_embedding) * embedding * dtype_bytes
        return own + self.table_bytes(dtype_bytes)

    def encoder_bytes(self, dtype_bytes: int) -> int:
        """The memory of an encoder for pictures, which steps of text do not read."""
        encoder = {n: s for n, s in self.shapes.items() if n.startswith(PICTURE_ENCODER)}
        layers = {n: one for n, one in self.layers.items() if n.startswith(PICTURE_ENCODER)}
        return num_bytes(encoder, layers, dtype_bytes)

    def table_bytes(self, dtype_bytes: int) -> int:
        """The memory of further embeddings."""
        shapes = (self.shapes.get(f"{name}.weight", (0,)) for name in self.tables)
        return sum(map(math.prod, shapes)) * dtype_bytes

    @property
    def has_lookup_rows(self) -> bool:
        """Whether the embedding has plain rows that no product reads."""
        has_head = HEAD in self.layers or f"{HEAD}.weight" in self.shapes
        return self.copies_embedding or (has_head and not self.leaves_out_embedding)

    @property
    def num_weights(self) -> int:
        """The number of weights in all matrices; an output layer that is the embedding counts
        once."""
        ends = (self.shapes.get(f"{name}.weight", (0,)) for name in (self.embedding, HEAD))
        return sum(self.layer_weights().values()) + sum(map(math.prod, ends))

    def layer_weights(self) -> dict[str, int]:
        """The number of weights of each matrix that tokens are multiplied with, by tensor or layer,
        without the output layer."""
        ends = (self.embedding, HEAD, *self.tables)
        owned = {
            f"{name}.{kind}" for name, one in self.layers.items() for kind in one.owned_kinds()
        }
        owned |= {f"{name}.weight" for name in ends}
        plain = {
            name: math.prod(shape)
            for name, shape in self.shapes.items()
            if name not in owned and len(shape) == 2 and not name.startswith(PICTURE_ENCODER)
        }
        packed = {
            name: one.out_features * one.in_features
            for name, one in self.layers.items()
            if name not in ends and not name.startswith(PICTURE_ENCODER)
        }
        return plain | packed


def plan_within_memory(
    checkpoint: Checkpoint,
    model_config: ModelConfig,
    intent: TokenSettings,
    machine: MachineFacts,
    reserve: Callable[[WeightPlan], T],
) -> tuple[WeightPlan, T]:
    """Plan weights like `plan_weights`, and return the plan with the result of `reserve`, which
    asks for its memory.

    Raises:
        ModelLoadError: the model cannot be served with this memory or in this format.
    """
    plan = plan_weights(checkpoint, model_config, intent, machine)
    try:
        return plan, reserve(plan)
    except InsufficientMemory:
        # Another model may hold memory that seemed free; plain weights were only a matter of speed.
        if not plan.could_stay_packed:
            raise
    intent = replace(intent, quantization=plan.stored)
    plan = plan_weights(checkpoint, model_config, intent, machine)
    return plan, reserve(plan)


def plan_weights(
    checkpoint: Checkpoint,
    model_config: ModelConfig,
    intent: TokenSettings,
    machine: MachineFacts,
    all_headers: dict[str, TensorHeader] | None = None,
) -> WeightPlan:
    """Decide how weights are kept, from headers and from the speed of products on this machine.

    Args:
        all_headers: what `weight_headers` has read before.

    Raises:
        ModelLoadError: the checkpoint's quantization is not supported, or the requested one is not
            possible.
    """
    all_headers = all_headers or weight_headers(checkpoint, model_config)
    shapes = {name: header.shape for name, header in all_headers.items()}
    headers = linear_headers(all_headers, model_config)
    stated = quantization_config(checkpoint)
    name, stored = detect(stated, headers) or _none_of_ours(stated)
    wanted, device = intent.quantization, machine.device
    has_native = device == "cpu" and native.library() is not None
    is_plain_better = (
        stored is not None
        and wanted == "auto"
        and has_native
        and prefers_plain(stored, headers, shapes, intent, machine)
    )
    chosen = resolve_quantization(
        wanted,
        device,
        stored=name,
        has_native=has_native or (device == "cuda" and _triton.AVAILABLE),
        prefers_plain=is_plain_better,
    )
    stays_packed = chosen != "none" and FORMATS[chosen].stored_as is not None
    if stays_packed:
        stored = stored_format(chosen, stated, headers)
    plain = UnquantizedMethod(invariant=intent.deterministic)
    layers = planned_layers(chosen, stored, headers, plain, device, stays_packed=stays_packed)
    embedding, head = model_config.embedding, layers.get(HEAD)
    is_tied, borrows = model_config.tie_word_embeddings, model_config.borrows_rows
    looked_up = {name for name in (embedding, *model_config.tables) if name in layers}
    layers = {**layers, **{name: kept_by(plain, layers[name]) for name in looked_up}}
    return WeightPlan(
        quantization=cast(Quantization, chosen),
        shapes=shapes,
        layers=layers,
        packed=layers if stays_packed else (),
        stored=cast(Quantization, name or "none"),
        could_stay_packed=is_plain_better,
        stored_bits=stored_bits(all_headers, stated),
        stored_type=stored_type(all_headers),
        embedding=embedding,
        tables=model_config.tables,
        copies_embedding=has_native and is_tied and head is None and not borrows,
        leaves_out_embedding=(
            is_tied and borrows and head is not None and head.method.lends_rows(device)
        ),
    )


def planned_layers(
    chosen: str,
    stored: StoredFormat | None,
    headers: Headers,
    plain: UnquantizedMethod,
    device: str,
    *,
    stays_packed: bool,
) -> Layers:
    """The quantised layers, or those that are quantised in the checkpoint but not in the model."""
    if stored is not None and stays_packed:
        layers = stored.layers(headers, device)
    elif stored is not None and not stored.unpacked_by_reader:
        layers = unpacked(stored, headers, chosen, plain, device)
    else:
        layers = {} if chosen == "none" else made_at_load(chosen, headers)
    return layers


def linear_headers(headers: Headers, config: ModelConfig) -> Headers:
    """The headers of linear layers and norms, without the embedding unless it is also the output
    layer."""
    tables = {f"{name}.weight" for name in config.tables}
    found = {name: header for name, header in headers.items() if name not in tables}
    embedding = found.pop(f"{config.embedding}.weight", None)
    if config.tie_word_embeddings and embedding is not None:
        found[f"{HEAD}.weight"] = embedding
    return found


def prefers_plain(
    stored: StoredFormat,
    headers: Headers,
    shapes: Shapes,
    intent: TokenSettings,
    machine: MachineFacts,
) -> bool:
    """Whether a file's packed weights should be unpacked when loaded, because that is faster here
    and leaves at least as much memory free as it takes."""
    dtype = torch_dtype(intent.model_dtype)
    if 2 * num_bytes(shapes, {}, dtype.itemsize) > machine.free_memory_bytes:
        return False
    return stored.is_slower_packed(stored.layers(headers, machine.device), dtype)


def _none_of_ours(stated: dict[str, Any]) -> tuple[None, None]:
    if stated:
        raise ModelLoadError(
            f"the weights are quantised ({stated.get('quant_method') or 'unknown method'}), which "
            f"is not supported in safetensors yet; use the unquantised model or a GGUF file of it"
        )
    return None, None
