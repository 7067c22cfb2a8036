"""Makes the pictures of docs/images.md through a running server's HTTP API.

    tandem serve --model tandem-shapes &
    python -m tools.demo_image_model.gallery --url http://127.0.0.1:8000 --out docs/img

Every picture is what the server answered.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tools.strip import decoded, encoded, strip

MODEL = "tandem-shapes"
GAP = 6
SCENE = "a large red circle left of a small blue star on a white background"


class Painter:
    """Asks the server for pictures."""

    def __init__(self, url: str, side: int) -> None:
        self._http = httpx.Client(base_url=url, timeout=300)
        self._size = f"{side}x{side}"

    def draw(self, prompt: str, **fields: Any) -> Image.Image:
        """`POST /v1/images/generations`."""
        body = {"model": MODEL, "prompt": prompt, "size": self._size, "seed": 1, **fields}
        response = self._http.post("/v1/images/generations", json=body)
        return _picture(response)

    def edit(
        self, image: Image.Image, prompt: str, mask: Image.Image | None = None, **fields: Any
    ) -> Image.Image:
        """`POST /v1/images/edits`, as a form."""
        form = {"model": MODEL, "prompt": prompt, "seed": "1"}
        form |= {k: v if isinstance(v, str) else json.dumps(v) for k, v in fields.items()}
        files = {"image": ("image.png", encoded(image), "image/png")}
        if mask is not None:
            files["mask"] = ("mask.png", encoded(mask), "image/png")
        return _picture(self._http.post("/v1/images/edits", data=form, files=files))

    def previews(self, prompt: str, count: int) -> list[Image.Image]:
        """The partial images of a stream and its result."""
        body = {"model": MODEL, "prompt": prompt, "size": self._size, "seed": 1}
        body |= {"stream": True, "partial_images": count}
        pictures: list[Image.Image] = []
        with self._http.stream("POST", "/v1/images/generations", json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    pictures.append(decoded(event["b64_json"]))
        return pictures


def half_mask(image: Image.Image) -> Image.Image:
    """A mask whose right half is transparent: OpenAI's API draws there."""
    alpha = np.full((image.height, image.width), 255, np.uint8)
    alpha[:, image.width // 2 :] = 0
    return Image.fromarray(np.dstack([np.asarray(image.convert("RGB")), alpha]))


def make_gallery(painter: Painter, out: Path) -> None:
    """Write all strips."""
    out.mkdir(parents=True, exist_ok=True)
    scene = painter.draw(SCENE)
    circle = painter.draw("a large red circle on the left on a white background")
    strips = {
        "text-to-image": [
            painter.draw(prompt)
            for prompt in (
                SCENE,
                "a yellow star above a purple triangle on a black background",
                "a small pink cross in the top right corner",
                "a green circle",
            )
        ],
        "seeds": [painter.draw("a large orange star", seed=seed) for seed in range(6)],
        "guidance": [painter.draw(SCENE, guidance_scale=g) for g in (1, 2, 4, 7, 12)],
        "previews": painter.previews(SCENE, 3),
        "image-to-image": [
            scene,
            *(
                painter.edit(scene, "a large green cross", strength=s, task="image_to_image")
                for s in (0.4, 0.7, 0.9)
            ),
        ],
        "inpainting": [
            circle,
            half_mask(circle).getchannel("A").convert("RGB"),
            painter.edit(circle, "a red circle left of a green square", half_mask(circle)),
        ],
        "outpainting": [
            circle,
            painter.edit(
                circle,
                "a red circle left of a yellow star on a white background",
                outpaint={"right": circle.width // 2},
            ),
        ],
        "editing": [
            scene,
            *(
                painter.edit(scene, instruction)
                for instruction in (
                    "make the circle green",
                    "remove the star",
                    "turn the star into a square",
                    "make the background black",
                )
            ),
        ],
    }
    for name, pictures in strips.items():
        strip(pictures, GAP).save(out / f"{name}.png", optimize=True)


def _picture(response: httpx.Response) -> Image.Image:
    if response.status_code != 200:
        raise SystemExit(f"{response.request.url}: {response.text}")
    return decoded(response.json()["data"][0]["b64_json"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, default=Path("docs/img"))
    parser.add_argument("--side", type=int, default=128)
    args = parser.parse_args()
    make_gallery(Painter(args.url, args.side), args.out)


if __name__ == "__main__":
    main()
