"""Keeps measurements of `tandem perplexity --save` in a file beside a model's weights.

A record belongs to exactly these weights; other weights in their place have none. It holds the
newest measurement for each way to keep the weights.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import structlog

from engine.errors import EngineError, ModelLoadError
from engine.files.checkpoint_files import open_regular, read_optional_json
from engine.files.gguf_part_names import part_names
from engine.weights.source import Checkpoint

_FOLDER_FILE = "tandem_quality.json"
_PIECE_BYTES = 4096
_NUM_PIECES = 64
"""The number of sampled pieces of a file, evenly spaced: other weights of the same shapes differ in
each."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How a model's numbers were kept during the measurement."""

    quantization: str
    dtype: str
    kv_cache_dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredQuality:
    """A model's quality compared with its original (`engine.text.scores.sums`)."""

    kept: Kept
    kl_divergence: float
    """The KL divergence in nats."""
    kl_divergence_error: float
    top1_agreement: float
    perplexity: float
    original_perplexity: float
    tokens: int
    """The number of scored tokens."""
    against: str
    """The original's name."""
    text: str
    """The name of the text file."""

    @classmethod
    def of_report(cls, report: dict[str, Any], *, kept: Kept, against: str, text: str) -> Self:
        """Make it from the report of a measurement with an original."""
        names = [f.name for f in fields(cls) if f.name in report]
        return cls(kept=kept, against=against, text=text, **{name: report[name] for name in names})

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Read it from JSON.

        Raises:
            KeyError, TypeError, ValueError: the JSON is something else.
        """
        kept = Kept(**{f.name: str(content["kept"][f.name]) for f in fields(Kept)})
        return cls(
            kept=kept,
            kl_divergence=float(content["kl_divergence"]),
            kl_divergence_error=float(content["kl_divergence_error"]),
            top1_agreement=float(content["top1_agreement"]),
            perplexity=float(content["perplexity"]),
            original_perplexity=float(content["original_perplexity"]),
            tokens=int(content["tokens"]),
            against=str(content["against"]),
            text=str(content["text"]),
        )


def record_path(checkpoint: Checkpoint) -> Path:
    """The path of a model's record, whether or not it exists."""
    if checkpoint.path.is_dir():
        return checkpoint.path / _FOLDER_FILE
    return checkpoint.path.with_name(f"{checkpoint.path.name}.quality.json")


def measured_quality(checkpoint: Checkpoint, kept: Kept) -> MeasuredQuality | None:
    """The measurement of these weights, kept this way. A record that cannot be read is ignored with
    a warning in the log."""
    return next((one for one in read_record(checkpoint) if one.kept == kept), None)


def read_record(checkpoint: Checkpoint) -> list[MeasuredQuality]:
    """All measurements of these weights."""
    path = record_path(checkpoint)
    try:
        content = read_optional_json(path)
        if not content:
            return []
        if content["weights"] != sampled_hash(checkpoint):
            log.warning("a quality record belongs to other weights and is ignored", file=path.name)
            return []
        return [MeasuredQuality.from_json(one) for one in content["measured"]]
    except (EngineError, OSError, KeyError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        log.warning("a quality record cannot be read and is ignored", file=path.name, why=why)
        return []


def save_quality(checkpoint: Checkpoint, measured: MeasuredQuality) -> Path:
    """Add a measurement to the model's record; it replaces one of the same way to keep the weights.

    Raises:
        ModelLoadError: the file cannot be written.
    """
    path = record_path(checkpoint)
    others = [one for one in read_record(checkpoint) if one.kept != measured.kept]
    content = {
        "weights": sampled_hash(checkpoint),
        "measured": [asdict(one) for one in (*others, measured)],
    }
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(f"{json.dumps(content, indent=2)}\n")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise ModelLoadError(
            f"{path.name} cannot be written beside the model: {error.strerror}; measure a copy of "
            f"the model in a folder that you may write to"
        ) from error
    return path


def sampled_hash(checkpoint: Checkpoint) -> str:
    """A hash of the sizes and samples of all weight files.

    Raises:
        OSError, ModelLoadError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in _weight_files(checkpoint):
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(size.to_bytes(8, "little"))
            for at in range(_NUM_PIECES):
                file.seek(max(0, size - _PIECE_BYTES) * at // (_NUM_PIECES - 1))
                digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()


def _weight_files(checkpoint: Checkpoint) -> Iterator[Path]:
    path = checkpoint.path
    if path.is_dir():
        yield from sorted(path.glob("*.safetensors"))
    else:
        yield from (path.with_name(name) for name in part_names(path.name))
