"""A checkpoint's encoder or decoder, loaded with its weights to embed texts."""

import math
from dataclasses import dataclass

import torch

from engine.contract.host import Host
from engine.contract.resolved_config import MachineFacts
from engine.contract.text_settings import TokenSettings
from engine.errors import UnsupportedArchitecture
from engine.files.checkpoint_files import read_json
from engine.models.config import ModelConfig
from engine.models.encoder import EncoderConfig
from engine.models.encoder_registry import (
    create_encoder,
    encoder_family,
    encoder_weights,
    read_encoder_config,
    supported_encoders,
)
from engine.models.metadata_keys import MetadataKeys
from engine.models.sentence_decoder import SentenceDecoder
from engine.models.sentence_encoder import SentenceEncoder
from engine.runtime.device import torch_dtype
from engine.runtime.fault import sizes_within_memory
from engine.runtime.huge_pages import use_huge_pages
from engine.weights.decoder import load_decoder
from engine.weights.loader import load_model_config
from engine.weights.safetensors import folder_headers, iter_tensors
from engine.weights.sentence_layout import SentenceLayout, read_gguf_layout, read_sentence_layout
from engine.weights.source import Checkpoint
from engine.weights.stored_bits import stored_type
from engine.weights.weight_plan import WeightPlan, plan_within_memory

CONFIG = "config.json"

_STATE_COPIES = 16
"""About how many copies of a step's hidden states exist at once: projections, a layer's keys and
values, the MLP's inner states and their activation. For the arbiter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEmbedder:
    """A model that embeds texts, and facts about it."""

    model: SentenceEncoder | SentenceDecoder
    architecture: str
    dtype: str
    vocab_size: int
    dimensions: int
    max_model_len: int
    layout: SentenceLayout
    num_weights: int
    weight_type: str


def load_embedder(
    checkpoint: Checkpoint,
    intent: TokenSettings,
    machine: MachineFacts,
    host: Host,
    *,
    layout: SentenceLayout | None = None,
    config: ModelConfig | None = None,
    with_head: bool = False,
) -> LoadedEmbedder:
    """Read the checkpoint, reserve its memory and load its weights.

    Args:
        layout: how a text's states become one; None: as the checkpoint's files say.
        config: a decoder's configuration; None: as the checkpoint's files say.
        with_head: whether to load a decoder's output layer.

    Raises:
        ModelLoadError: the checkpoint cannot be loaded; the message is fit for clients.
    """
    if checkpoint.layout == "folder":
        keys = MetadataKeys(read_json(checkpoint.path / CONFIG), CONFIG)
        if encoder_family(keys) is not None:
            layout = layout or read_sentence_layout(checkpoint.path)
            return _load_encoder(checkpoint, keys, layout, intent, machine, host)
    return _load_decoder(checkpoint, layout, config, intent, machine, host, with_head=with_head)


def _load_encoder(
    checkpoint: Checkpoint,
    keys: MetadataKeys,
    layout: SentenceLayout,
    intent: TokenSettings,
    machine: MachineFacts,
    host: Host,
) -> LoadedEmbedder:
    config = read_encoder_config(keys)
    # Embeddings are compared with each other, so bfloat16's rounding would show; encoders are
    # small.
    dtype_name = "float32" if intent.dtype == "auto" else intent.dtype
    dtype = torch_dtype(dtype_name)
    max_model_len = _max_model_len(intent, layout, config.max_position_embeddings)
    headers = folder_headers(checkpoint.path)
    numbers = sum(math.prod(header.shape) for header in headers.values())
    weights = numbers * dtype.itemsize
    host.reserve(machine.device, "weights", weights, machine.free_memory_bytes)
    _reserve_states(config, _step_tokens(intent, max_model_len), dtype, machine, host)
    with sizes_within_memory():
        encoder = create_encoder(
            keys, dtype=dtype, device=machine.device, deterministic=intent.deterministic
        )
        encoder.load_weights(encoder_weights(keys, iter_tensors(checkpoint.path)))
    if machine.device == "cpu":
        use_huge_pages()
    return LoadedEmbedder(
        model=SentenceEncoder(encoder, layout.pooling),
        architecture=config.architecture,
        dtype=dtype_name,
        vocab_size=config.vocab_size,
        dimensions=config.hidden_size,
        max_model_len=max_model_len,
        layout=layout,
        num_weights=numbers,
        weight_type=stored_type(headers),
    )


def _load_decoder(
    checkpoint: Checkpoint,
    layout: SentenceLayout | None,
    config: ModelConfig | None,
    intent: TokenSettings,
    machine: MachineFacts,
    host: Host,
    *,
    with_head: bool,
) -> LoadedEmbedder:
    try:
        config = (config or load_model_config(checkpoint)).within(intent.max_model_len)
    except UnsupportedArchitecture as error:
        encoders = ", ".join(supported_encoders())
        raise UnsupportedArchitecture(
            f"{error.message}; supported encoders are {encoders}"
        ) from error
    if layout is None and checkpoint.layout == "folder":
        layout = read_sentence_layout(checkpoint.path, default="last")
    layout = layout or read_gguf_layout(checkpoint.path)
    dtype = torch_dtype(intent.model_dtype)
    max_model_len = _max_model_len(intent, layout, config.max_position_embeddings)
    step_tokens = _step_tokens(intent, max_model_len)

    def reserve(plan: WeightPlan) -> None:
        weights = plan.num_bytes(dtype.itemsize, with_head=with_head)
        host.reserve(machine.device, "weights", weights, machine.free_memory_bytes)

    plan, _ = plan_within_memory(checkpoint, config, intent, machine, reserve)
    _reserve_states(config, step_tokens, dtype, machine, host)
    with sizes_within_memory():
        model = load_decoder(
            checkpoint,
            plan,
            config,
            host,
            dtype=dtype,
            device=torch.device(machine.device),
            deterministic=intent.deterministic,
            with_head=with_head,
        )
        embedder = SentenceDecoder(
            model, layout.pooling, max_tokens=step_tokens, max_texts=intent.max_num_seqs
        )
    return LoadedEmbedder(
        model=embedder,
        architecture=config.architecture,
        dtype=intent.model_dtype,
        vocab_size=config.vocab_size,
        dimensions=config.hidden_size,
        max_model_len=max_model_len,
        layout=layout,
        num_weights=plan.num_weights,
        weight_type=plan.stored_type,
    )


def _reserve_states(
    config: EncoderConfig | ModelConfig,
    step_tokens: int,
    dtype: torch.dtype,
    machine: MachineFacts,
    host: Host,
) -> None:
    """Reserve the memory of a step."""
    states = state_bytes(config, step_tokens, dtype)
    host.reserve(machine.device, "activations", states, machine.free_memory_bytes)


def state_bytes(config: EncoderConfig | ModelConfig, step_tokens: int, dtype: torch.dtype) -> int:
    """The bytes of a step with that many tokens."""
    widest = max(config.hidden_size, config.intermediate_size)
    return _STATE_COPIES * step_tokens * widest * dtype.itemsize


def _max_model_len(intent: TokenSettings, layout: SentenceLayout, positions: int) -> int:
    """Return the tokens of the longest input. The setting may exceed the layout's length but not
    the model's positions; text models served beside this one may take longer texts."""
    return min(intent.max_model_len or layout.max_tokens or positions, positions)


def _step_tokens(intent: TokenSettings, max_model_len: int) -> int:
    """Return the most tokens of a step."""
    return max(intent.max_num_batched_tokens, max_model_len)
