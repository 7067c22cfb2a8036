"""Draws the pictures of docs/upscaling.md: a photograph, shrunk and enlarged by a server.

    python -m tools.upscaling_gallery astronaut.png --crop 96,16,128 --out face.jpg

From left to right: the small image enlarged by repeating pixels, by a bicubic filter and by the
server, and the photograph itself.
"""

import argparse
import base64
import io
from pathlib import Path

import httpx
from PIL import Image

_GAP = 4
_BICUBIC = Image.Resampling.BICUBIC


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
    small = original.resize((side // args.shrink, side // args.shrink), Image.Resampling.BOX)
    enlarged = ask(small, args.url, args.model)
    size = enlarged.size
    panels = [
        small.resize(size, Image.Resampling.NEAREST),
        small.resize(size, _BICUBIC),
        enlarged,
        original.resize(size, _BICUBIC),
    ]
    strip = Image.new("RGB", (len(panels) * (size[0] + _GAP) - _GAP, size[1]), "white")
    for number, panel in enumerate(panels):
        strip.paste(panel, (number * (size[0] + _GAP), 0))
    strip.save(args.out, optimize=True, quality=90)


def ask(image: Image.Image, url: str, model: str) -> Image.Image:
    """The image, enlarged by the server."""
    file = io.BytesIO()
    image.save(file, "PNG")
    answer = httpx.post(
        f"{url}/v1/images/upscale",
        files={"image": file.getvalue()},
        data={"model": model},
        timeout=None,
    )
    answer.raise_for_status()
    encoded = answer.json()["data"][0]["b64_json"]
    return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")


if __name__ == "__main__":
    main()
