"""The folder for downloads and compiled operations, and the free space on its disk."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from engine.contract.built_in import BUILT_IN
from engine.contract.model_spec import ModelSpec
from server.doctor.finding import Finding

_OPERATIONS_BYTES = 128 << 20
"""Space for compiled operations and what the compiler writes for them."""
_COPIES = 3
"""The number of copies of a built-in model on the disk while it is fetched: downloaded, checked,
unpacked."""
_ELSEWHERE = "tandem serve --cache-dir FOLDER, with a folder that {}"


def cache_folder(folder: Path) -> Finding:
    """Whether downloads can be kept there. Nothing is written."""
    place = _existing(folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        is_there = f"; {place} is what exists of it" if place != folder else ""
        return Finding(
            "cache folder",
            "broken",
            f"{folder} cannot be written by this user{is_there}",
            _ELSEWHERE.format("you can write to"),
        )
    if os.statvfs(place).f_flag & os.ST_NOEXEC:
        return Finding(
            "cache folder",
            "limited",
            f"{folder} is on a file system mounted noexec, so models run much more slowly",
            _ELSEWHERE.format("is on another disk"),
        )
    return Finding("cache folder", "ok", f"{folder} can be written")


def kv_store(folder: Path, max_bytes: int) -> Finding:
    """Whether the KV store can be written and has enough space. Nothing is written."""
    place = _existing(folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        found = f"{folder} cannot be used as a folder by this user"
        fix = "tandem serve --kv-store FOLDER, with a folder that you can write to"
        return Finding("KV store", "broken", found, fix)
    free = shutil.disk_usage(place).free
    rooms = f"{_gigabytes(free)} free for {folder}, {_gigabytes(max_bytes)} may be used"
    if free < max_bytes // 8:  # a folder that is in use has some of the rest
        return Finding("KV store", "limited", rooms, "lower --kv-store-bytes, or free space")
    return Finding("KV store", "ok", rooms)


def disk(folder: Path, models: Sequence[ModelSpec]) -> Finding:
    """Whether there is space for the built-in models that are not downloaded yet."""
    needed = _OPERATIONS_BYTES + sum(_download_bytes(folder, model) for model in models)
    try:
        free = shutil.disk_usage(_existing(folder)).free
    except OSError as error:
        return Finding("disk", "limited", f"free space for {folder} is unknown: {error.strerror}")
    rooms = f"{_gigabytes(free)} free for {folder}"
    if free < needed:
        return Finding(
            "disk",
            "broken",
            f"{rooms}; fetching the models and compiling takes {_gigabytes(needed)}",
            _ELSEWHERE.format("is on a larger disk"),
        )
    return Finding("disk", "ok", f"{rooms}; {_gigabytes(needed)} may be needed")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next((one for one in (folder, *folder.parents) if os.path.lexists(one)), folder)


def _download_bytes(folder: Path, model: ModelSpec) -> int:
    known = BUILT_IN.get(model.ref.lower())
    here = (folder / "models" / model.ref.lower()).glob("[!.]*")  # its lock is not the model
    if known is None or any(here):
        return 0
    return _COPIES * known.megabytes * 1_000_000


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
