"""Fetches models of the Hugging Face hub with `huggingface_hub`.

Files land in the library's own cache, so a model that another tool fetched is not fetched again,
and the library's settings apply (`HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`). Records under
`cache_dir/hub` say which downloads were completed, so that the next start uses them without asking
the network. Called by `source.py`.
"""

import contextlib
import errno
import glob
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from engine.errors import ModelLoadError, ModelNotFound
from engine.files.checkpoint_files import read_json
from engine.files.gguf_part_names import first_part, part_names
from engine.weights import verified_file
from engine.weights.diffusers_layout import HALF_FIRST, UNUSED, choose_weights, has_pickles

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

log = structlog.get_logger(__name__)

_POLL_S = 0.25
_MAX_REASON = 200
"""The most characters of a reason; some libraries put a request's whole history into an error."""
_SMALL_FILES = (".json", ".jinja", ".txt", ".model")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_IMAGE_INDEX = "model_index.json"
_ADAPTER_LAYOUTS = (
    ("adapter_config.json", "adapter_model.safetensors"),
    ("pytorch_lora_weights.safetensors",),
)
"""The files of adapters in PEFT's folders and in diffusers'."""


def fetch_hub_model(
    repo: str,
    *,
    revision: str | None,
    filename: str | None,
    cache_dir: Path,
    on_progress: Callable[[float | None, str], None],
    offline: bool = False,
) -> Path:
    """The folder of the repository's files, or the path of its GGUF file `filename` with any other
    parts beside it.

    Only what serving needs is fetched: safetensors if there are any, otherwise the one GGUF file,
    and the small files beside them; of an image model each component once, in half precision if
    there is a choice. A completed download is used unchanged, even if its branch has moved on; to
    fetch it again, name another `revision` or delete the record. Complete files survive an
    interruption; a broken connection is resumed; if the process is killed, the file in progress
    starts over.

    Raises:
        ModelNotFound: there is no such repository, revision or file, no access to it, or no
            network.
        ModelLoadError: it holds no weights that are read here, or the disk is full.
    """
    found = _fetch_files(
        _Wanted(repo, revision, _record_path(cache_dir, repo, revision, filename)),
        lambda names: select_files(repo, names, filename),
        lambda: _in_library_cache(repo, revision, filename),
        on_progress=on_progress,
        offline=offline,
    )
    return found if filename is None else found / filename


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Files of a repository, and the record of their completed download."""

    repo: str
    revision: str | None
    record: Path


def fetch_hub_adapter(
    repo: str,
    *,
    revision: str | None,
    filename: str | None,
    cache_dir: Path,
    on_progress: Callable[[float | None, str], None],
    offline: bool = False,
) -> Path:
    """The folder with a LoRA adapter's files, or the path of its .safetensors file `filename`. In
    all else like `fetch_hub_model`.

    Raises:
        ModelNotFound, ModelLoadError: as in `fetch_hub_model`.
    """
    found = _fetch_files(
        _Wanted(repo, revision, _record_path(cache_dir, repo, revision, filename, "adapter")),
        lambda names: select_adapter_files(repo, names, filename),
        lambda: _adapter_in_library_cache(repo, revision, filename),
        on_progress=on_progress,
        offline=offline,
    )
    return found if filename is None else found / filename


def _fetch_files(
    wanted: _Wanted,
    select: Callable[[Sequence[str]], list[str]],
    find_cached: Callable[[], Path | None],
    *,
    on_progress: Callable[[float | None, str], None],
    offline: bool,
) -> Path:
    """The snapshot folder with some files of a repository.

    Args:
        select: chooses the files to fetch from the names of all files.
        find_cached: looks for files that another tool has fetched.
    """
    found = _recorded(wanted.record)
    if found is None and not offline:
        try:
            with _clear_errors(wanted.repo, wanted.revision):
                found = _download(wanted, select, on_progress)
        except ModelNotFound:
            found = find_cached()
            if found is None:
                raise
            log.warning("the hub cannot be reached; using the cached copy", model=wanted.repo)
    elif found is None:
        found = find_cached()
    if found is None:
        raise ModelNotFound(
            f"{wanted.repo} is not in the cache and offline mode is on; start once with network "
            f"access"
        )
    return found


def _download(
    wanted: _Wanted,
    select: Callable[[Sequence[str]], list[str]],
    on_progress: Callable[[float | None, str], None],
) -> Path:
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    # The library's progress bars would fill the log; `on_progress` reports instead.
    disable_progress_bars()
    repo, revision, record = wanted.repo, wanted.revision, wanted.record
    on_progress(None, f"asking the hub for {repo}")
    info = huggingface_hub.HfApi().model_info(repo, revision=revision, files_metadata=True)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    names = select(list(siblings))
    with _reported(repo, [siblings[name] for name in names], on_progress):
        snapshot = Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision, allow_patterns=[glob.escape(name) for name in names]
            )
        )
    sizes = {name: (snapshot / name).stat().st_size for name in names}
    record.parent.mkdir(parents=True, exist_ok=True)
    verified_file.write_whole(
        record, [json.dumps({"snapshot": str(snapshot), "files": sizes}).encode()]
    )
    return snapshot


def select_files(repo: str, names: Sequence[str], filename: str | None) -> list[str]:
    """Choose the files to fetch from a repository with these `names`.

    Raises:
        ModelNotFound: `filename` or another part of its model is missing, or there are several GGUF
            files and none was named.
        ModelLoadError: it holds only pickles, or no weights at all.
    """
    top = [name for name in names if "/" not in name]
    ggufs = list(dict.fromkeys(first_part(name) for name in names if name.endswith(".gguf")))
    if filename is not None:
        return _with_all_parts(repo, filename, names, ggufs)
    if _IMAGE_INDEX in top:
        return [_IMAGE_INDEX, *_component_files(repo, names)]
    weights = _safetensors(top)
    if not weights and len(ggufs) == 1:
        return _with_all_parts(repo, ggufs[0], names, ggufs)
    if not weights and ggufs:
        raise ModelNotFound(
            f"{repo} holds several GGUF files; name one, as in {repo}:{ggufs[0]} (there are "
            f"{', '.join(ggufs[:20])})"
        )
    if not weights and any(name.endswith(_PICKLES) for name in top):
        raise ModelLoadError(
            f"{repo} has its weights only as pickles ({'/'.join(_PICKLES)}), which can run code "
            f"when read; look for a repository with safetensors or GGUF files"
        )
    if not weights:
        raise ModelLoadError(
            f"{repo} has neither .safetensors nor .gguf files; name the repository of a model"
        )
    return [name for name in top if name in weights or name.endswith(_SMALL_FILES)]


def select_adapter_files(repo: str, names: Sequence[str], filename: str | None) -> list[str]:
    """Choose the files to fetch from a repository with a LoRA adapter.

    Raises:
        ModelNotFound: `filename` is missing, or there are several files and none was named.
        ModelLoadError: it holds only pickles, or no weights at all.
    """
    if filename is not None:
        if filename not in names or not filename.endswith(".safetensors"):
            raise ModelNotFound(f"{repo} has no .safetensors file {filename!r}")
        return [filename]
    for files in _ADAPTER_LAYOUTS:
        if set(files) <= set(names):
            return list(files)
    weights = [name for name in names if "/" not in name and name.endswith(".safetensors")]
    if len(weights) == 1:
        return weights
    if weights:
        raise ModelNotFound(
            f"{repo} holds several .safetensors files; name one, as in {repo}:{weights[0]} (there "
            f"are {', '.join(weights[:20])})"
        )
    if any(name.endswith(_PICKLES) for name in names):
        raise ModelLoadError(
            f"{repo} has its weights only as pickles ({'/'.join(_PICKLES)}), which can run code "
            f"when read; look for an adapter with safetensors"
        )
    raise ModelLoadError(f"{repo} has no .safetensors files; name the repository of a LoRA adapter")


def _with_all_parts(
    repo: str, filename: str, names: Sequence[str], ggufs: Sequence[str]
) -> list[str]:
    """A GGUF file, with all other parts if it is one of several."""
    wanted, known = part_names(filename), set(names)
    missing = [name for name in wanted if name not in known]
    if missing:
        raise ModelNotFound(
            f"{repo} has no file {missing[0]!r}; its GGUF files: {', '.join(ggufs) or 'none'}"
        )
    return wanted


def _component_files(repo: str, names: Sequence[str]) -> list[str]:
    """An image model's small files, and one set of weights of each component."""
    chosen: list[str] = []
    for folder, files in _components(names).items():
        _, weights = choose_weights(files, HALF_FIRST)
        if not weights and has_pickles(files):
            raise ModelLoadError(
                f"{repo} has the weights of its {folder} only as pickles, which can run code when "
                f"read; look for a repository or a revision with safetensors"
            )
        small = [name for name in files if name.endswith(_SMALL_FILES)]
        chosen += [f"{folder}/{name}" for name in (*small, *weights)]
    return chosen


def _components(names: Sequence[str]) -> dict[str, list[str]]:
    """The files of each folder that has a configuration, by folder."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.partition("/")
        if file and "/" not in file and folder not in UNUSED:
            folders.setdefault(folder, []).append(file)
    return {
        folder: files
        for folder, files in folders.items()
        if any(file.endswith("config.json") for file in files)
    }


def _safetensors(top: Sequence[str]) -> set[str]:
    """One set of the weights; some repositories also hold a copy in another layout."""
    weights = {name for name in top if name.endswith(".safetensors")}
    if "model.safetensors.index.json" in top:
        shards = {name for name in weights if re.search(r"-\d+-of-\d+\.safetensors$", name)}
        return {name for name in shards if name.startswith("model")} or shards
    return {"model.safetensors"} & weights or weights


def _record_path(cache_dir: Path, *wanted: str | None) -> Path:
    asked = json.dumps(wanted)
    return cache_dir / "hub" / f"{hashlib.sha256(asked.encode()).hexdigest()[:24]}.json"


def _recorded(record: Path) -> Path | None:
    """The snapshot folder of a completed download, if all of it still exists."""
    try:
        entry = json.loads(record.read_text())
        snapshot = Path(entry["snapshot"])
        whole = all(
            (snapshot / name).stat().st_size == size for name, size in entry["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return snapshot if whole else None


def _in_library_cache(repo: str, revision: str | None, filename: str | None) -> Path | None:
    """A snapshot that another tool fetched, if its weights are complete."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        snapshot = Path(
            huggingface_hub.snapshot_download(
                repo,
                revision=revision,
                local_files_only=True,
                allow_patterns=part_names(filename)
                if filename
                else ["config.json", "tokenizer.json", "*.safetensors", _IMAGE_INDEX],
            )
        )
        names = sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*"))
        if filename is not None:
            return snapshot if set(part_names(filename)) <= set(names) else None
        if _IMAGE_INDEX in names:
            return snapshot if _is_whole(snapshot, names) else None
        index = snapshot / "model.safetensors.index.json"
        needed = {"config.json", "tokenizer.json"} | (_safetensors(names) or {"no weights"})
        if index.exists():
            needed |= set(read_json(index)["weight_map"].values())
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError),
        *(HFValidationError, ModelLoadError),
    ):
        return None
    return snapshot if needed <= set(names) else None


def _adapter_in_library_cache(repo: str, revision: str | None, filename: str | None) -> Path | None:
    """A snapshot that another tool fetched, if it has the adapter's files."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        snapshot = Path(
            huggingface_hub.snapshot_download(repo, revision=revision, local_files_only=True)
        )
        found = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*")]
        select_adapter_files(repo, found, filename)
    except (OSError, ValueError, HFValidationError, ModelLoadError):
        return None
    return snapshot


def _is_whole(snapshot: Path, names: Sequence[str]) -> bool:
    """Whether each component of an image model has its configuration and all of its weights."""
    index = read_json(snapshot / _IMAGE_INDEX)
    components = _components(names)
    for name, entry in index.items():
        if not isinstance(entry, list) or None in entry or name in UNUSED:
            continue
        files = components.get(name)
        if files is None:
            return False
        # Tokenizers and schedulers have neither weights nor a config.json.
        if "config.json" in files and not choose_weights(files, HALF_FIRST)[1]:
            return False
    return True


@contextlib.contextmanager
def _clear_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Turn the library's errors into messages that say what was asked and what to do, whatever HTTP
    library it uses."""
    from huggingface_hub import errors

    asked = repo if revision is None else f"{repo}@{revision}"
    try:
        yield
    except ModelLoadError:
        raise
    except errors.GatedRepoError as error:
        raise ModelNotFound(
            f"{asked} is gated: accept its licence on its hub page and set HF_TOKEN to a token of "
            f"the same account"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFound(
            f"{repo} has no revision {revision!r}; give an existing branch, tag or commit"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ModelNotFound(
            f"the hub has no model {asked} that you may see; check the spelling, and set HF_TOKEN "
            f"if it is private"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        raise ModelNotFound(_HTTP_STATUS.get(status, _HTTP_OTHER).format(asked, status)) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:_MAX_REASON]
        log.warning("download failed", model=asked, reason=reason or type(error).__name__)
        log.debug("where the download failed", exc_info=error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelLoadError(
                f"there is not enough disk space for {asked}; free some, or set HF_HOME"
            ) from error
        raise ModelNotFound(
            f"{asked} could not be fetched ({type(error).__name__}); check the network and proxy "
            f"settings and try again: files that are complete are kept"
        ) from error


_HTTP_OTHER = "the hub answered {1} for {0}; try again later: files that are complete are kept"
_HTTP_STATUS = {
    401: "the hub does not let you read {0} ({1}); check HF_TOKEN",
    403: "the hub does not let you read {0} ({1}); accept its licence, and check HF_TOKEN",
    404: "the hub has no {0} ({1}); check the spelling",
    429: "the hub limits this machine's requests ({1} for {0}); set HF_TOKEN or try again later",
}


@contextlib.contextmanager
def _reported(
    repo: str, siblings: "Sequence[RepoSibling]", on_progress: Callable[[float | None, str], None]
) -> Iterator[None]:
    """Report the bytes on disk while the block runs, which works with every version of the
    library."""
    from huggingface_hub import constants

    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
    etags = [s.lfs.sha256 if s.lfs is not None else s.blob_id or "" for s in siblings]
    total = sum(s.size or 0 for s in siblings) or 1
    done = threading.Event()

    def watch() -> None:
        num_bytes = 0
        while not done.wait(_POLL_S):
            # A file that is just being renamed is found under neither name.
            seen = sum(_size(blobs, etag) for etag in etags if etag)
            num_bytes = max(num_bytes, min(total, seen))
            on_progress(
                num_bytes / total,
                f"fetching {repo}: {num_bytes / 1e6:.0f} of {total / 1e6:.0f} MB",
            )

    watcher = threading.Thread(target=watch, name="hub-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _size(blobs: Path, etag: str) -> int:
    """The bytes of one file so far: it is `<etag>` when complete and `<etag>*.incomplete`
    before."""
    sizes = [0]
    for path in blobs.glob(f"{glob.escape(etag)}*"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return max(sizes)
