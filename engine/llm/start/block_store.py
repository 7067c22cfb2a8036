"""Creates the KV store of a model, and identifies what computed its blocks."""

import hashlib
from pathlib import Path

import torch

import engine
import kernels
from engine.contract.resolved_config import ResolvedConfig
from engine.contract.text_settings import TextSettings
from engine.errors import ModelLoadError
from engine.llm.kv_store.block_files import BlockFiles
from engine.llm.kv_store.kv_store import KvStore
from engine.llm.runner.kv_storage import KvStorage
from engine.models.config import ModelConfig
from engine.weights.digest import digest_of
from engine.weights.source import Checkpoint
from engine.weights.weight_plan import WeightPlan
from kernels import isa, native

_FEWEST_BLOCKS = 128
"""Fewer blocks are not worth a folder."""


def open_files(intent: TextSettings, model_config: ModelConfig) -> BlockFiles | None:
    """Open the store's folder, before anything that takes long. None without a store.

    Raises:
        ModelLoadError: there can be no store for this model, or not in this folder.
    """
    if intent.kv_store is None:
        return None
    check_keeps_blocks(intent, model_config, "kv_store")
    return BlockFiles(Path(intent.kv_store).expanduser(), intent.kv_store_bytes)


def check_keeps_blocks(intent: TextSettings, model_config: ModelConfig, setting: str) -> None:
    """Check that a model's blocks can be used elsewhere, as a setting wants.

    Raises:
        ModelLoadError: they cannot.
    """
    reason = None
    if model_config.recurrent_bytes(1):
        reason = "this model has recurrent states, which it does not keep"
    elif not model_config.kv_layers:
        reason = "this model keeps no keys and values"
    elif not intent.enable_prefix_caching:
        reason = "enable_prefix_caching is off, and it keeps cached blocks"
    if reason is not None:
        raise ModelLoadError(
            f"{setting} cannot be used: {reason}; leave {setting} out for this model",
            param=setting,
        )


def create_store(
    files: BlockFiles, memory: KvStorage, intent: TextSettings, computed_by: object
) -> KvStore:
    """Create the store of a loaded model.

    Raises:
        ModelLoadError: its limit is too small for enough blocks.
    """
    least_bytes = _FEWEST_BLOCKS * memory.block_bytes
    if intent.kv_store_bytes < least_bytes:
        raise ModelLoadError(
            f"kv_store_bytes is {intent.kv_store_bytes}; a block of this model takes "
            f"{memory.block_bytes} bytes; give at least {least_bytes}, or leave kv_store out",
            param="kv_store_bytes",
        )
    return KvStore(files, memory, computed_by)


def computed_by(
    config: ResolvedConfig, model_config: ModelConfig, plan: WeightPlan, checkpoint: Checkpoint
) -> object:
    """Everything that shapes the contents of a model's blocks beside the text, but not the files
    with the weights."""
    encoder = {} if checkpoint.mmproj is None else {"mmproj": checkpoint.mmproj}
    return (
        _sources_digest(),
        _arithmetic(config.device),
        digest_of(encoder),
        repr(model_config),
        sorted((name, type(layer.method).__name__) for name, layer in plan.layers.items()),
        (plan.quantization, config.dtype, config.kv_cache_dtype, config.block_size),
        config.deterministic,
    )


def _sources_digest() -> str:
    """The digest of the code that computes blocks. Any other code may compute other bits."""
    digest = hashlib.sha256()
    for package in (engine, kernels):
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _arithmetic(device: str) -> tuple[str, ...]:
    """The libraries and the processor that compute on a device."""
    if device == "cuda":
        return (torch.__version__, torch.cuda.get_device_name(), torch.version.cuda or "")
    library = "" if native.library() is None else native.library_path().name
    return (torch.__version__, library, isa.chosen(), *sorted(isa.features()))
