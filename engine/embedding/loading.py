"""From a checkpoint of a sentence encoder to an engine that can step: size, load, warm up."""

import hashlib
import math
import time
from dataclasses import asdict
from pathlib import Path

import structlog
import torch

from engine.checkpoint_files import read_json, read_optional_json
from engine.config import EngineConfig, MachineFacts
from engine.embedding.engine import EmbeddingEngine, EmbeddingLimits
from engine.embedding_types import EmbeddingModelInfo, EmbeddingRequest
from engine.errors import InsufficientMemory, ModelLoadError
from engine.fault import is_out_of_memory
from engine.host import Host
from engine.models.encoder import EncoderConfig
from engine.models.encoder_registry import (
    create_encoder,
    encoder_family,
    encoder_weights,
    read_encoder_config,
)
from engine.models.metadata_keys import MetadataKeys
from engine.models.sentence_encoder import SentenceEncoder
from engine.runtime.device import machine_facts, torch_dtype
from engine.runtime.huge_pages import use_huge_pages
from engine.runtime.operations import build_operations
from engine.runtime.threads import limit_threads
from engine.types import Phase
from engine.weights.safetensors import folder_headers, iter_tensors
from engine.weights.sentence_layout import (
    SentenceLayout,
    has_sentence_layout,
    read_sentence_layout,
)
from engine.weights.source import Checkpoint

_CONFIG = "config.json"
_STATE_COPIES = 16
"""About so many times the hidden states of a step exist at once: projections, the MLP's inner
states and their activation. For the arbiter."""

log = structlog.get_logger(__name__)


def makes_embeddings(checkpoint: Checkpoint) -> bool:
    """Whether a folder is an encoder's, or was written by sentence-transformers.

    Raises:
        CorruptFile: its config.json is damaged.
    """
    if checkpoint.kind != "folder":
        return False
    keys = MetadataKeys(read_optional_json(checkpoint.path / _CONFIG), _CONFIG)
    return has_sentence_layout(checkpoint.path) or encoder_family(keys) is not None


def load_engine(
    checkpoint: Checkpoint, model_id: str, intent: EngineConfig, host: Host
) -> tuple[EmbeddingEngine, EmbeddingModelInfo]:
    """Load a checkpoint and serve it as `model_id`.

    Raises:
        ModelLoadError: one of its kinds; the message is fit for clients.
    """
    started_s = time.monotonic()
    keys = MetadataKeys(read_json(checkpoint.path / _CONFIG), _CONFIG)
    config = read_encoder_config(keys)
    layout = read_sentence_layout(checkpoint.path)
    machine = machine_facts(intent.device)
    limit_threads(intent.num_threads or machine.num_cores)
    # Embeddings are compared with each other, where bfloat16 would show; encoders are small.
    dtype_name = "float32" if intent.dtype == "auto" else intent.dtype
    limits = embedding_limits(config, layout, intent)
    _reserve(checkpoint.path, limits, config, torch_dtype(dtype_name), machine, host)
    if machine.device == "cpu":
        build_operations(host)
    try:
        encoder = create_encoder(
            keys,
            dtype=torch_dtype(dtype_name),
            device=machine.device,
            deterministic=intent.deterministic,
        )
        encoder.load_weights(encoder_weights(keys, iter_tensors(checkpoint.path)))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InsufficientMemory(
            "the sizes in the model's configuration need more memory than there is; use a smaller "
            "model, or fetch its configuration again if its files are small"
        ) from error
    if machine.device == "cpu":
        use_huge_pages()
    engine = EmbeddingEngine(SentenceEncoder(encoder, layout.pooling), limits)
    host.report(Phase.WARMING_UP)
    warm_up(engine, limits)
    facts = {"pooling": layout.pooling, "dtype": dtype_name, **asdict(limits)}
    log.info("embedding model loaded", seconds=round(time.monotonic() - started_s, 1), **facts)
    text = repr((sorted(facts.items()), intent.deterministic))
    return engine, EmbeddingModelInfo(
        model=model_id,
        path=str(checkpoint.path),
        architecture=config.architecture,
        dtype=dtype_name,
        created=int(time.time()),
        max_model_len=limits.max_model_len,
        vocab_size=config.vocab_size,
        dimensions=limits.dimensions,
        pooling=layout.pooling,
        normalized=layout.normalizes,
        config_hash=hashlib.sha256(text.encode()).hexdigest()[:8],
    )


def _reserve(
    folder: Path,
    limits: EmbeddingLimits,
    config: EncoderConfig,
    dtype: torch.dtype,
    machine: MachineFacts,
    host: Host,
) -> None:
    """Ask for the memory of weights and of a step."""
    numbers = sum(math.prod(header.shape) for header in folder_headers(folder).values())
    free = machine.free_memory_bytes
    host.reserve(machine.device, "weights", numbers * dtype.itemsize, free)
    tokens = max(limits.max_num_batched_tokens, limits.max_model_len)
    widest = max(config.hidden_size, config.intermediate_size)
    states = _STATE_COPIES * tokens * widest * dtype.itemsize
    host.reserve(machine.device, "activations", states, free)


def embedding_limits(
    config: EncoderConfig, layout: SentenceLayout, intent: EngineConfig
) -> EmbeddingLimits:
    """What the engine keeps to. `max_model_len` may go beyond what the layout says, but not beyond
    the encoder's positions; text models beside this one may well take more."""
    wanted = intent.max_model_len or layout.max_tokens or config.max_position_embeddings
    return EmbeddingLimits(
        max_model_len=min(wanted, config.max_position_embeddings),
        vocab_size=config.vocab_size,
        dimensions=config.hidden_size,
        normalizes=layout.normalizes,
        max_num_seqs=intent.max_num_seqs,
        max_num_batched_tokens=intent.max_num_batched_tokens,
        max_num_queued=intent.max_num_queued,
    )


def warm_up(engine: EmbeddingEngine, limits: EmbeddingLimits) -> None:
    """One step, so that the first request does not pay for lazy set-up.

    Raises:
        ModelLoadError: it brings no embedding, or one of numbers that are not finite.
    """
    token_ids = [0] * min(8, limits.max_model_len)
    engine.add(EmbeddingRequest(request_id="warm-up", model="", inputs=[token_ids]))
    events, _ = engine.step()
    for event in events:
        if event.failure is not None:
            raise ModelLoadError(
                f"a trial embedding failed: {event.failure.message}; the weights are damaged, or "
                f"overflow in their dtype: fetch the model again, or set another dtype"
            )
    engine.reset_totals()
