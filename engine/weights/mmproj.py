"""Finds the file with the encoder by which a GGUF model sees pictures."""

from dataclasses import replace
from pathlib import Path

import structlog

from engine.errors import ModelLoadError
from engine.weights.config_gguf import read_gguf_config
from engine.weights.source import MMPROJ, Checkpoint

log = structlog.get_logger(__name__)


def with_mmproj(checkpoint: Checkpoint, named: str | None) -> Checkpoint:
    """Return the checkpoint with the file that the setting `mmproj` names, or with the first such
    file beside it. One that was not named and belongs to another model is left out.

    Raises:
        ModelLoadError: the named file cannot be used.
    """
    if named is not None:
        return _with_named(checkpoint, Path(named))
    if checkpoint.layout != "gguf":
        return checkpoint
    beside = sorted(checkpoint.path.parent.glob(f"{MMPROJ}*.gguf"))
    for path in beside[:1]:
        try:
            read_gguf_config(checkpoint.path, path)
        except ModelLoadError as error:
            log.warning("the model will not accept images", reason=error.message)
        else:
            return replace(checkpoint, mmproj=path)
    return checkpoint


def _with_named(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    if checkpoint.layout != "gguf":
        raise ModelLoadError(
            f"mmproj is set and {checkpoint.name} is not a GGUF file; a folder has its encoder for "
            f"pictures itself, so leave mmproj out",
            param="mmproj",
        )
    try:
        read_gguf_config(checkpoint.path, path)
    except ModelLoadError as error:
        raise type(error)(f"mmproj cannot be used: {error.message}", param="mmproj") from error
    return replace(checkpoint, mmproj=path)
