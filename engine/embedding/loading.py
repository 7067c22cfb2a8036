"""Loads a checkpoint into an engine for embeddings, warms it up and informs the server."""

import time
from dataclasses import asdict
from typing import Any

import structlog

from engine.contract.embed import EmbeddingModelInfo, EmbeddingRequest
from engine.contract.fingerprint import fingerprint
from engine.contract.host import Host
from engine.contract.resolved_config import MachineFacts
from engine.contract.status import Phase
from engine.contract.text_settings import TokenSettings
from engine.contract.worker_settings import WantedKind
from engine.embedding.embedders import CONFIG, LoadedEmbedder, load_embedder
from engine.embedding.work import EmbeddingEngine, EmbeddingLimits, EmbeddingWork
from engine.files.checkpoint_files import read_optional_json
from engine.models.encoder_registry import encoder_family
from engine.models.metadata_keys import MetadataKeys
from engine.runtime.device import machine_facts
from engine.runtime.operations import build_operations
from engine.runtime.threads import limit_threads
from engine.weights.sentence_layout import has_sentence_layout
from engine.weights.source import Checkpoint

_COMPLAINT = (
    "a trial embedding failed: {reason}; the weights are damaged or overflow in their dtype; fetch "
    "the model again or set another dtype"
)

log = structlog.get_logger(__name__)


def makes_embeddings(checkpoint: Checkpoint, wanted: WantedKind) -> bool:
    """Whether the operator wants embeddings, or a folder is an encoder's or was written by
    sentence-transformers.

    Raises:
        CorruptFile: the folder's config.json is damaged.
    """
    if wanted == "embedding":
        return True
    if checkpoint.layout != "folder":
        return False
    keys = MetadataKeys(read_optional_json(checkpoint.path / CONFIG), CONFIG)
    return has_sentence_layout(checkpoint.path) or encoder_family(keys) is not None


def load_engine(
    checkpoint: Checkpoint, model_id: str, intent: TokenSettings, host: Host
) -> tuple[EmbeddingEngine, EmbeddingModelInfo]:
    """Load a checkpoint and serve it as `model_id`.

    Raises:
        ModelLoadError: the checkpoint cannot be loaded; the message is fit for clients.
    """
    started_s = time.monotonic()
    machine = prepared_machine(intent, host)
    loaded = load_embedder(checkpoint, intent, machine, host)
    limits = EmbeddingLimits(
        **shared_limits(loaded, intent),
        dimensions=loaded.dimensions,
        normalizes=loaded.layout.normalizes,
    )
    engine = EmbeddingEngine(EmbeddingWork(loaded.model, limits), limits)
    host.report(Phase.WARMING_UP)
    trial = [0] * min(8, limits.max_model_len)
    engine.try_out([EmbeddingRequest(request_id="warm-up", model="", inputs=[trial])], _COMPLAINT)
    facts = {"pooling": loaded.layout.pooling, "dtype": loaded.dtype, **asdict(limits)}
    log.info("embedding model loaded", seconds=round(time.monotonic() - started_s, 1), **facts)
    return engine, EmbeddingModelInfo(
        **shared_info(loaded, checkpoint, model_id),
        dimensions=loaded.dimensions,
        pooling=loaded.layout.pooling,
        normalized=loaded.layout.normalizes,
        config_hash=fingerprint((sorted(facts.items()), intent.deterministic)),
    )


def prepared_machine(intent: TokenSettings, host: Host) -> MachineFacts:
    """Prepare threads and operations, and return the facts about the machine."""
    machine = machine_facts(intent.device)
    limit_threads(intent.num_threads or machine.num_cores)
    if machine.device == "cpu":
        build_operations(host)
    return machine


def shared_limits(loaded: LoadedEmbedder, intent: TokenSettings) -> dict[str, Any]:
    """Return the fields of `WholeTextsLimits`."""
    return {
        "max_model_len": loaded.max_model_len,
        "vocab_size": loaded.vocab_size,
        "max_num_seqs": intent.max_num_seqs,
        "max_num_batched_tokens": intent.max_num_batched_tokens,
        "max_num_queued": intent.max_num_queued,
        "scheduling_policy": intent.scheduling_policy,
    }


def shared_info(loaded: LoadedEmbedder, checkpoint: Checkpoint, model_id: str) -> dict[str, Any]:
    """Return the fields of `WholeTextsInfo`, without the hash."""
    return {
        "model": model_id,
        "path": str(checkpoint.path),
        "architecture": loaded.architecture,
        "dtype": loaded.dtype,
        "created": int(time.time()),
        "max_model_len": loaded.max_model_len,
        "vocab_size": loaded.vocab_size,
        "num_weights": loaded.num_weights,
        "weight_type": loaded.weight_type,
    }
