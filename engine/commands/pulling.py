"""`tandem pull`: fetches a model's files and says where they are."""

from functools import partial
from pathlib import Path
from typing import Any

from engine.contract.host import Tell
from engine.contract.orders import PullingOrder
from engine.contract.status import Phase
from engine.files.gguf_part_names import part_names
from engine.processes.telling_host import TellingHost
from engine.weights.source import Checkpoint, resolve_source


def pull(order: PullingOrder, tell: Tell) -> dict[str, Any]:
    """The name, place and size of the model's files, after those that were missing are fetched.

    Raises:
        EngineError: as in `resolve_source`.
    """
    checkpoint = resolve_source(
        order.model,
        cache_dir=order.cache_dir,
        offline=order.offline,
        on_progress=partial(TellingHost(tell).report, Phase.DOWNLOADING),
    )
    files = _files(checkpoint)
    size = sum(file.stat().st_size for file in files)
    return {"model": checkpoint.name, "path": str(checkpoint.path.absolute()), "bytes": size}


def _files(checkpoint: Checkpoint) -> list[Path]:
    path = checkpoint.path
    if path.is_dir():
        return [file for file in path.rglob("*") if file.is_file()]
    if checkpoint.layout == "ncnn":
        return [path, path.with_suffix(".bin")]
    return [path.with_name(name) for name in part_names(path.name)]
