"""Installs the packages for `make serve` and `make test` with pip, and shows its progress.

python tools/install.py '.[dev]'        # in the environment whose python runs it

Without an NVIDIA driver it takes torch without CUDA, which is a quarter of the size. Needs nothing
but Python, because it runs before anything is installed.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

HOME = Path(__file__).parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
DISK_GB = {"cpu": 1.7, "cuda": 6.3}
"""Disk space of all packages, by the build of torch."""
_REACH_S = 5.0
_DRY_RUN_S = 60.0
_TORCH = re.compile(r'"(torch>=[^"]+)"')
_FETCHING = re.compile(r"Downloading (?:\S*/)?([\w.]+)-(\d[^-\s]*)\S* \(([\d.]+ \w+)\)")
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def main(wanted: str) -> int:
    """Install what `.[extras]` names. Returns pip's exit code, or 1 if the disk is too small."""
    build = "cpu" if _is_there("torch") or not _has_driver() else "cuda"
    index = [] if _is_there("torch") or build == "cuda" else cpu_index()
    if index is None:
        build = "cuda"
        _say("PyTorch's index of builds without CUDA cannot be reached; taking the build with CUDA")
    if not _is_there("torch"):
        free_gb, needed_gb = shutil.disk_usage(sys.prefix).free / 1e9, DISK_GB[build]
        if free_gb < needed_gb:
            _say(f"the packages need {needed_gb} GB; the disk has only {free_gb:.1f} GB: free some")
            return 1
        _say(f"installing packages: {needed_gb} GB on disk, a few minutes the first time")
    if index:
        code = _run_pip(["install", "--index-url", *index, _torch()])
        if code != 0:
            return code
    return _run_pip(["install", "--constraint", str(HOME / "constraints.txt"), "-e", wanted])


def cpu_index() -> list[str] | None:
    """The index of torch without CUDA, or [] for pip's own; None if only the CUDA build exists.

    pip is asked first: behind a mirror PyTorch's own index may be out of reach, and the mirror may
    offer another build.
    """
    asked = [*_PIP, "install", "--dry-run", "--no-deps", "--quiet", "--report", "-", _torch()]
    _say("checking which builds of torch there are")
    try:
        done = subprocess.run(asked, capture_output=True, timeout=_DRY_RUN_S, check=True)
        needs = json.loads(done.stdout)["install"][0]["metadata"].get("requires_dist", [])
    except (subprocess.SubprocessError, ValueError, LookupError):
        return []  # the installation itself will report the error
    if not any(need.startswith(("nvidia-", "cuda-", "triton")) for need in needs):
        return []
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=_REACH_S):
            return [CPU_INDEX]
    except OSError:
        return None


def _has_driver() -> bool:
    """Whether there is an NVIDIA driver. Builds for other systems than Linux have no CUDA."""
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _torch() -> str:
    found = _TORCH.search((HOME / "pyproject.toml").read_text())
    assert found is not None
    return found[1]


def _run_pip(arguments: list[str]) -> int:
    """Run pip with one line of progress, and print the end of its output if it fails."""
    command = [*_PIP, *arguments, "--progress-bar", "off"]
    said: list[str] = []
    line = StatusLine()
    with (
        line,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as pip,
    ):
        assert pip.stdout is not None
        for text in pip.stdout:
            said.append(text)
            line.show(*steps(text))
    if pip.returncode != 0:
        sys.stderr.write("".join(said[-40:]))
    return pip.returncode


def steps(text: str) -> Iterator[str]:
    """The progress to show for a line of pip's output, if any."""
    fetching = _FETCHING.search(text)
    if fetching is not None:
        yield f"fetching {fetching[1]} {fetching[2]} ({fetching[3]})"
    elif text.startswith("Installing collected packages:"):
        yield f"unpacking {text.count(',') + 1} packages"
    elif text.startswith("Collecting "):
        yield f"looking for {text.split()[1]}"


class StatusLine:
    """A context that shows one line with a clock on a terminal, or else a line per long step."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self._text = "starting pip"
        self._is_live = sys.stderr.isatty()
        self._over = threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> None:
        if self._is_live:
            self._clock.start()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._is_live:
            self._clock.join()
            sys.stderr.write("\r\x1b[K")
        _say(f"pip took {time.monotonic() - self._begun_s:.0f} s")

    def show(self, *texts: str) -> None:
        for text in texts:
            self._text = text
            if not self._is_live and not text.startswith("looking for"):
                _say(text)

    def _tick(self) -> None:
        while not self._over.wait(0.25):
            seconds = int(time.monotonic() - self._begun_s)
            width = shutil.get_terminal_size().columns
            shown = f"  {seconds // 60}:{seconds % 60:02} {self._text}"[: width - 1]
            sys.stderr.write(f"\r\x1b[K{shown}")
            sys.stderr.flush()


def _say(line: str) -> None:
    print(f"tandem: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
