"""Makes one SHA-256 of all files of a model or an adapter, which changes with every change of the
weights.

For one file it is what `sha256sum FILE` prints; for several, what `sha256sum FILES | sha256sum`
prints, with their names within the model's folder and in the order of these names.
"""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

from engine.errors import EngineError, ModelLoadError
from engine.files.checkpoint_files import (
    MAX_JSON_BYTES,
    open_regular,
    read_optional_json,
    unreadable,
)
from engine.files.gguf_part_names import part_names
from engine.weights.diffusers_layout import UNUSED
from engine.weights.source import Checkpoint
from engine.weights.verified_file import write_whole

_PIECE_BYTES = 4 << 20
_LARGE_BYTES = 64 << 20
"""Files from this size on are not hashed again while they are unchanged."""
_SETTLED_NS = 2_000_000_000
"""Two writes within this time may leave the same time stamp on a file."""
_TEXTS = (".json", ".jinja", ".txt", ".model")
"""The endings of files that affect how weights are used: configurations, vocabularies,
templates."""
_RECORDS = ("tandem_quality.json",)
"""Files in a model's folder that are written about the model later and do not count."""


class PendingDigest:
    """The digest of a model's files, which a thread makes while they are loaded.

    Args:
        memory: a folder that keeps the digests of large files between starts.
    """

    def __init__(self, checkpoint: Checkpoint, memory: Path) -> None:
        self._files = model_files(checkpoint)
        self._marks = self._marks_now()
        self._digest: Future[str] = Future()
        # A daemon, as a failed load ends the process, which must not wait for this thread.
        threading.Thread(target=self._run, args=(memory,), name="digest", daemon=True).start()

    @property
    def num_bytes(self) -> int:
        """The size of all files."""
        return sum(mark[2] for mark in self._marks if mark is not None)

    @property
    def is_done(self) -> bool:
        """Whether `result` would not wait."""
        return self._digest.done()

    def result(self) -> str:
        """Wait for the digest.

        Raises:
            ModelLoadError: a file cannot be read, or was changed meanwhile.
        """
        digest = self._digest.result()
        if self._marks_now() != self._marks:
            raise ModelLoadError("the model's files changed while they were read; load it again")
        return digest

    def _run(self, memory: Path) -> None:
        try:
            self._digest.set_result(digest_of(self._files, memory))
        except Exception as error:
            self._digest.set_exception(error)

    def _marks_now(self) -> list[list[int] | None]:
        return [_mark(path) for path in self._files.values()]


def model_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """The files that a model is read from, by names that stay the same if it is moved or renamed.

    Raises:
        ModelLoadError: the folder cannot be read.
    """
    path = checkpoint.path
    match checkpoint.layout:
        case "folder" | "diffusers":
            try:
                return {file.relative_to(path).as_posix(): file for file in _in_folder(checkpoint)}
            except OSError as error:
                raise unreadable(path, error) from error
        case "gguf":
            return {str(n): path.with_name(name) for n, name in enumerate(part_names(path.name))}
        case "ncnn":
            return {file.suffix: file for file in (path, path.with_suffix(".bin"))}
        case _:
            return {path.suffix: path}


def _in_folder(checkpoint: Checkpoint) -> list[Path]:
    path = checkpoint.path
    if checkpoint.layout == "folder":
        weights = list(path.glob("model*.safetensors")) or list(path.glob("*.safetensors"))
        return [*weights, *_texts(path), *path.glob("*/config.json")]
    parts = [part for part in path.iterdir() if part.is_dir() and part.name not in UNUSED]
    files = [file for part in parts for file in (*part.glob("*.safetensors"), *_texts(part))]
    return [path / "model_index.json", *files]


def digest_of(files: Mapping[str, Path], memory: Path | None = None) -> str:
    """The digest of some files.

    Args:
        files: the files by the names that enter the digest; missing files are left out.

    Raises:
        CorruptFile, ModelLoadError: a file cannot be read.
    """
    digests = {}
    for name, path in sorted(files.items()):
        with contextlib.suppress(FileNotFoundError):
            digests[name] = _file_digest(path, memory)
    if len(digests) == 1:
        return next(iter(digests.values()))
    listing = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()


def _file_digest(path: Path, memory: Path | None) -> str:
    mark = _mark(path)
    is_kept = memory is not None and mark is not None and mark[2] >= _LARGE_BYTES
    if memory is None or mark is None or not is_kept:
        return _hashed(path)
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    record = memory / f"{name}.json"
    with contextlib.suppress(EngineError, OSError):
        known = read_optional_json(record)
        if known.get("mark") == mark and isinstance(known.get("sha256"), str):
            return str(known["sha256"])
    digest = _hashed(path)
    if time.time_ns() - max(mark[3:]) > _SETTLED_NS and _mark(path) == mark:
        with contextlib.suppress(OSError):  # the file is then hashed again next time
            memory.mkdir(parents=True, exist_ok=True)
            write_whole(record, [json.dumps({"mark": mark, "sha256": digest}).encode()])
    return digest


def _hashed(path: Path) -> str:
    piece = memoryview(bytearray(_PIECE_BYTES))
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while size := file.readinto(piece):  # type: ignore[attr-defined]
                digest.update(piece[:size])
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


def _texts(folder: Path) -> list[Path]:
    """The text files of a folder that are small enough to be read."""
    named = [f for f in folder.iterdir() if f.suffix in _TEXTS and f.name not in _RECORDS]
    return [file for file in named if file.is_file() and file.stat().st_size <= MAX_JSON_BYTES]


def _mark(path: Path) -> list[int] | None:
    """Values that change with every write; nobody can set the time of an inode's change at will."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
