"""Draws the pictures of docs/upscaling.md and docs/fidelity.md: a photograph, shrunk and enlarged.

    python -m tools.upscaling_gallery astronaut.png --crop 96,16,128 --out face.jpg
    python -m tools.upscaling_gallery astronaut.png --crop 84,8,112 --fidelity --out face.jpg

From left to right: the small image enlarged by repeating pixels, by a bicubic filter and by a
server, and the photograph. With `--fidelity`: the photograph; the small image enlarged by a bicubic
filter, by the server, by the server with `fidelity` 1, and with `face_guard` 1; and the map of the
server's first result. This also prints the answers' numbers.
"""

import argparse
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from tools.strip import decoded, encoded, strip

_GAP = 4
_WAYS: tuple[dict[str, str], ...] = ({"heat_map": "true"}, {"fidelity": "1"}, {"face_guard": "1"})
_Filter = Image.Resampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photograph", type=Path)
    parser.add_argument("--crop", required=True, help="left,top,side in pixels")
    parser.add_argument(
        "--shrink", type=int, default=2, help="how many times to shrink it before sending"
    )
    parser.add_argument("--fidelity", action="store_true", help="the pictures of docs/fidelity.md")
    parser.add_argument("--model", default="realesrgan-x4plus")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    left, top, side = map(int, args.crop.split(","))
    photograph = Image.open(args.photograph).convert("RGB")
    original = photograph.crop((left, top, left + side, top + side))
    shrunk = (side // args.shrink,) * 2
    small = original.resize(shrunk, _Filter.BICUBIC if args.fidelity else _Filter.BOX)
    panels = (_fidelity_panels if args.fidelity else _panels)(original, small, args.url, args.model)
    strip(panels, _GAP).save(args.out, optimize=True, quality=90)


def _panels(original: Image.Image, small: Image.Image, url: str, model: str) -> list[Image.Image]:
    enlarged = decoded(ask(small, url, model)["data"][0]["b64_json"])
    size = enlarged.size
    return [
        small.resize(size, _Filter.NEAREST),
        small.resize(size, _Filter.BICUBIC),
        enlarged,
        original.resize(size, _Filter.BICUBIC),
    ]


def _fidelity_panels(
    original: Image.Image, small: Image.Image, url: str, model: str
) -> list[Image.Image]:
    answers = [ask(small, url, model, **fields) for fields in _WAYS]
    for fields, answer in zip(_WAYS, answers, strict=True):
        print(fields, answer["consistency"], "faces:", answer["num_faces"])
    results = [decoded(answer["data"][0]["b64_json"]) for answer in answers]
    size = results[0].size
    return [
        original.resize(size, _Filter.BICUBIC),
        small.resize(size, _Filter.BICUBIC),
        *results,
        decoded(answers[0]["heat_map"]).resize(size, _Filter.NEAREST),
    ]


def ask(image: Image.Image, url: str, model: str, **fields: str) -> dict[str, Any]:
    """Ask the server to enlarge the image; returns its answer."""
    response = httpx.post(
        f"{url}/v1/images/upscale",
        files={"image": encoded(image)},
        data={"model": model, **fields},
        timeout=None,
    )
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


if __name__ == "__main__":
    main()
