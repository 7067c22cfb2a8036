"""Compares background removal with pymatting's own functions and with rembg, in turns.

    python -m loadtest.matting --image photo.png --trimap trimap.png

Starts a server and asks it over HTTP for a cut-out, with the trimap and without. `pymatting` makes
one from the same picture and trimap (closed-form alpha and multi-level foreground, whole picture)
and `rembg` one without a trimap (u2netp and alpha matting). Each library runs in a process of its
own (`loadtest/matting_peer.py`), so that no time includes imports. All of them decode the picture
and encode a PNG; the server does so over HTTP.
Needs pymatting (`pip install pymatting`). `--rembg-python` is the interpreter of an environment
that has rembg.
"""

import argparse
import asyncio
import base64
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from loadtest.launch import ServerCommand, launched
from loadtest.machine import provenance
from loadtest.processes import process_trees
from loadtest.record import RequestRecord
from loadtest.results import TURNS_FORMAT, save_result
from loadtest.turns import Turn, take_turns, turns_section

_PORT = 8765
_URL = f"http://127.0.0.1:{_PORT}"
_NETWORKS = Path.home() / ".cache" / "tandem" / "models" / "u2netp"
"""The folder where the server keeps u2netp.onnx; rembg uses the same file, without a download."""
_SERVER = ServerCommand(
    name="tandem",
    command=f"{sys.executable} -m server serve --model u2netp --port {_PORT}",
    url=_URL,
    model="u2netp",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.matting")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--trimap", type=Path, required=True)
    parser.add_argument(
        "--megapixels", type=float, default=1.0, help="scale image and trimap to this size"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rembg-python", type=Path)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    document: dict[str, Any] = {
        "format": TURNS_FORMAT,
        **provenance("Taking a background away", "loadtest.matting"),
        "rounds": args.rounds,
    }
    with tempfile.TemporaryDirectory() as folder:
        files = {
            name: _scaled(path, args.megapixels, Path(folder) / f"{name}.png")
            for name, path in (("image", args.image), ("trimap", args.trimap))
        }
        measured = _measured(files, args.rounds, args.rembg_python, Path(folder))
        document["tasks"] = asyncio.run(measured)
    print(turns_section(document))
    if args.output is not None:
        save_result(document, args.output)


def _scaled(path: Path, megapixels: float, to: Path) -> Path:
    """The picture scaled to that size. A trimap keeps its three levels."""
    image = Image.open(path)
    factor = (1e6 * megapixels / (image.width * image.height)) ** 0.5
    size = round(image.width * factor), round(image.height * factor)
    is_colour = "RGB" in image.mode
    resampling = Image.Resampling.BICUBIC if is_colour else Image.Resampling.NEAREST
    image.convert("RGB" if is_colour else "L").resize(size, resampling).save(to)
    return to


async def _measured(
    files: dict[str, Path], rounds: int, rembg_python: Path | None, folder: Path
) -> list[dict[str, Any]]:
    content = {name: path.read_bytes() for name, path in files.items()}
    photograph = {"image": content["image"]}
    async with launched(_SERVER, folder / "server.log", probes=[_probe(photograph)]) as launch:
        tasks = []
        pymatting = _Peer("pymatting", Path(sys.executable), files)
        turns = [Turn("Tandem", _ask(**content)), Turn("pymatting", pymatting.run)]
        tasks.append(await _task("with a trimap", turns, rounds, launch.pid, pymatting))
        turns = [Turn("Tandem", _ask(**photograph))]
        rembg = None
        if rembg_python is not None:
            rembg = _Peer("rembg", rembg_python, files)
            turns.append(Turn("rembg", rembg.run))
        tasks.append(await _task("automatic", turns, rounds, launch.pid, rembg))
    return tasks


async def _task(
    name: str, turns: list[Turn], rounds: int, server: int, peer: "_Peer | None"
) -> dict[str, Any]:
    roots = [server] if peer is None else [server, peer.pid]
    shares = await asyncio.to_thread(take_turns, turns, rounds, roots)
    turns[0].peak_mib = max(_peak_mib(stat.pid) for stat in process_trees([server]))
    if peer is not None:
        turns[1].peak_mib = peer.close()
    return {"name": name, "runs": [turn.to_json() for turn in turns], "cpu": shares}


def _ask(**files: bytes) -> Callable[[], None]:
    def ask() -> None:
        response = httpx.post(f"{_URL}/v1/images/matte", files=files, timeout=600)
        response.raise_for_status()
        image = base64.b64decode(response.json()["data"][0]["b64_json"])
        Image.open(io.BytesIO(image)).verify()

    return ask


def _probe(files: dict[str, bytes]) -> Any:
    """A probe that asks the server for a cut-out."""

    async def probe() -> RequestRecord:
        record = RequestRecord(0, 1)
        try:
            await asyncio.to_thread(_ask(**files))
            record.status = 200
        except httpx.HTTPStatusError as error:
            record.status = error.response.status_code
            record.error = str(error)
        except httpx.HTTPError as error:
            record.error = str(error) or type(error).__name__
        return record

    return probe


def _peak_mib(pid: int) -> int:
    """Peak of a process's resident memory; 0 if the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM:")), 0)


class _Peer:
    """A library that runs in a process of its own."""

    def __init__(self, name: str, python: Path, files: dict[str, Path]) -> None:
        program = Path(__file__).with_name("matting_peer.py")
        command = [str(python), "-P", str(program), name, str(files["image"]), str(files["trimap"])]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Keep the project's own modules, such as `kernels`, off the library's path.
            env={"U2NET_HOME": str(_NETWORKS)}
            | {key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        )
        self.pid = self._process.pid

    def run(self) -> float:
        """Do the work once. Returns the seconds that it took.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> int:
        """End the process. Returns its peak of resident memory in MiB."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        peak = int(self._line())
        self._process.wait()
        return peak

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the library's process ended; its output above says why")
        return line


if __name__ == "__main__":
    main()
