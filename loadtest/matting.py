"""Background removal beside pymatting's own functions and rembg, interleaved.

    python -m loadtest.matting --image photo.png --trimap trimap.png --url http://127.0.0.1:8000

Runs take turns: a request to a running server, the same picture by `pymatting` (closed-form alpha
and multi-level foreground, whole picture), and, without the trimap, by `rembg` with u2netp and
alpha matting. Each library runs in a process of its own that has loaded and warmed up before, so
that neither pays for imports; a run of the server pays for HTTP and for its PNG, which the
others make as well. Prints medians and ranges as JSON.
Needs pymatting, and rembg unless `--without-rembg`.
"""

import argparse
import base64
import io
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx

Run = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.matting")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--trimap", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without-rembg", action="store_true")
    args = parser.parse_args()
    image, trimap = args.image.read_bytes(), args.trimap.read_bytes()
    peers = {"pymatting": _Peer(_pymatting, image, trimap)}
    if not args.without_rembg:
        peers["rembg"] = _Peer(_rembg, image, trimap)
    runs: dict[str, Run] = {
        "tandem, trimap": lambda: _ask(args.url, image=image, trimap=trimap),
        "pymatting, trimap": peers["pymatting"].run,
        "tandem, automatic": lambda: _ask(args.url, image=image),
    }
    if "rembg" in peers:
        runs["rembg, automatic"] = peers["rembg"].run
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # the server's first request may load its model
    for _ in range(args.repeats):
        for name, run in runs.items():
            seconds[name].append(run())
    rows: dict[str, Any] = {
        name: {
            "median_s": round(statistics.median(found), 3),
            "min_s": round(min(found), 3),
            "max_s": round(max(found), 3),
        }
        for name, found in seconds.items()
    }
    for name, peer in peers.items():
        rows[f"{name}, peak MiB"] = peer.close()
    print(json.dumps(rows, indent=1))


def _ask(url: str, **files: bytes) -> float:
    started_s = time.perf_counter()
    response = httpx.post(f"{url}/v1/images/matte", files=files, timeout=600)
    response.raise_for_status()
    base64.b64decode(response.json()["data"][0]["b64_json"])
    return time.perf_counter() - started_s


class _Peer:
    """A library in a process of its own."""

    def __init__(self, work: Callable[..., None], *files: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=work, args=(other, *files), daemon=True)
        self._process.start()

    def run(self) -> float:
        self._pipe.send("run")
        seconds: float = self._pipe.recv()
        return seconds

    def close(self) -> int:
        """Its peak of resident memory, in MiB."""
        self._pipe.send("end")
        peak: int = self._pipe.recv()
        self._process.join()
        return peak


def _serve(pipe: Connection, work: Callable[[], None]) -> None:
    work()  # compiles and loads
    while pipe.recv() == "run":
        started_s = time.perf_counter()
        work()
        pipe.send(time.perf_counter() - started_s)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)


def _pymatting(pipe: Connection, image: bytes, trimap: bytes) -> None:
    import numpy as np
    from PIL import Image
    from pymatting import estimate_alpha_cf, estimate_foreground_ml

    def work() -> None:
        picture = np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) / 255.0
        levels = np.asarray(Image.open(io.BytesIO(trimap)).convert("L")) / 255.0
        alpha = estimate_alpha_cf(picture, levels)
        colours = estimate_foreground_ml(picture, alpha)
        cutout = np.dstack([colours, alpha]).clip(0, 1)
        Image.fromarray(np.rint(255 * cutout).astype(np.uint8)).save(io.BytesIO(), "PNG")

    _serve(pipe, work)


def _rembg(pipe: Connection, image: bytes, trimap: bytes) -> None:
    from rembg import new_session, remove

    session = new_session("u2netp")
    _serve(pipe, lambda: remove(image, session=session, alpha_matting=True))


if __name__ == "__main__":
    main()
