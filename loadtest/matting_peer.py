"""Runs a background-removal library in a process of its own, which `loadtest.matting` starts.

    python loadtest/matting_peer.py pymatting|rembg IMAGE TRIMAP

For each line on its standard input it does the work once and prints the seconds that it took; at
the end of the input it prints its peak of resident memory in MiB. Its environment needs only the
library, not this project.
"""

import contextlib
import io
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path


def pymatting(image: bytes, trimap: bytes) -> Callable[[], object]:
    """Closed-form alpha and multi-level foreground of the whole picture."""
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

    return work


def rembg(image: bytes, trimap: bytes) -> Callable[[], object]:
    """The network, then alpha matting, as rembg does by itself."""
    from rembg import new_session, remove

    session = new_session("u2netp")
    return lambda: remove(image, session=session, alpha_matting=True)


def main() -> None:
    image, trimap = (Path(name).read_bytes() for name in sys.argv[2:4])
    work = {"pymatting": pymatting, "rembg": rembg}[sys.argv[1]](image, trimap)
    for _ in sys.stdin:
        started_s = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):  # pymatting prints warnings
            work()
        print(time.perf_counter() - started_s, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, flush=True)


if __name__ == "__main__":
    main()
