"""Draws the pictures of docs/fidelity.md: a photograph, shrunk and enlarged by a server.

    python -m tools.fidelity_gallery astronaut.png --crop 96,24,128 --out docs/img/fidelity-face.jpg

From left to right: the photograph; the small image enlarged by a bicubic filter, by the server,
by the server with `fidelity` 1, and with `face_guard` 1; and the map of the server's first result.
Also prints the answers' numbers.
"""

import argparse
import base64
import io
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

_GAP = 4
_WAYS: tuple[dict[str, str], ...] = ({"heat_map": "true"}, {"fidelity": "1"}, {"face_guard": "1"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photograph", type=Path)
    parser.add_argument("--crop", required=True, help="left,top,side in pixels")
    parser.add_argument(
        "--shrink", type=int, default=2, help="how many times to shrink it before sending"
    )
    parser.add_argument("--model", default="realesrgan-x4plus")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    left, top, side = map(int, args.crop.split(","))
    photograph = Image.open(args.photograph).convert("RGB")
    original = photograph.crop((left, top, left + side, top + side))
    small = original.resize((side // args.shrink,) * 2, Image.Resampling.BICUBIC)
    answers = [ask(small, args.url, args.model, **fields) for fields in _WAYS]
    results = [opened(answer["data"][0]["b64_json"]) for answer in answers]
    size = results[0].size
    panels = [
        original.resize(size, Image.Resampling.BICUBIC),
        small.resize(size, Image.Resampling.BICUBIC),
        *results,
        opened(answers[0]["heat_map"]).resize(size, Image.Resampling.NEAREST),
    ]
    strip = Image.new("RGB", (len(panels) * (size[0] + _GAP) - _GAP, size[1]), "white")
    for number, panel in enumerate(panels):
        strip.paste(panel, (number * (size[0] + _GAP), 0))
    strip.save(args.out, optimize=True, quality=90)
    for fields, answer in zip(_WAYS, answers, strict=True):
        print(fields, answer["consistency"], "faces:", answer["num_faces"])


def ask(image: Image.Image, url: str, model: str, **fields: str) -> dict[str, Any]:
    """Ask the server to enlarge the image; returns its answer."""
    file = io.BytesIO()
    image.save(file, "PNG")
    response = httpx.post(
        f"{url}/v1/images/upscale",
        files={"image": file.getvalue()},
        data={"model": model, **fields},
        timeout=None,
    )
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def opened(encoded: str) -> Image.Image:
    """The decoded picture of an answer."""
    return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")


if __name__ == "__main__":
    main()
