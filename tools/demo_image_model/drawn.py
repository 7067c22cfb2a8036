"""Collects pictures that the model drew and the scenes it meant, to train its decoder.

    python -m tools.demo_image_model.drawn MODEL --size 128 --num 2000 --out runs/drawn_128.pt

The UNets' latents differ slightly from those of a clean picture: an outline has bumps, a faint
smudge lies beside an object, a colour is half a shade off. So this draws prompts and edits like
those of training, as users would, reads the pictures, and stores the nearest scene beside each
picture's latents. A picture that is near no scene is left out.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools.demo_image_model import evaluate, evaluate_edit
from tools.demo_image_model.captions import caption
from tools.demo_image_model.checkpoint import save_state
from tools.demo_image_model.classify import Reading, Seen, read
from tools.demo_image_model.edits import draw_training_edit
from tools.demo_image_model.model import load_vae, mixed_precision
from tools.demo_image_model.palette import HELD_OUT
from tools.demo_image_model.sampling import EditSampler, Sampler, batches, decode
from tools.demo_image_model.scenes import GRID, Item, Scene, draw_scene, scene_rng, snapped

SEED = 12
FINE_GRID = 2 * GRID
"""A finer grid: as in older training, half of the objects lie between corners of `GRID`."""
MAX_SHIFT = 0.03
"""Largest distance of an object from its corner, in image widths; corners lie 0.0625 apart."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Unscaled latents, `[N, 4, H, W]` fp16, and the scene that each row was meant to be."""

    latents: torch.Tensor
    scenes: list[Scene]

    def sample(self, count: int, generator: torch.Generator) -> "Drawn":
        """Draw `count` random rows."""
        rows = torch.randint(len(self.scenes), (count,), generator=generator)
        return Drawn(self.latents[rows], [self.scenes[row] for row in rows.tolist()])

    def save(self, path: Path) -> None:
        """Write the file that `load_drawn` reads."""
        save_state(path, {"latents": self.latents, "scenes": [asdict(s) for s in self.scenes]})


def load_drawn(paths: Sequence[Path]) -> dict[int, Drawn]:
    """The rows of all files by picture size, in pixels."""
    found: dict[int, Drawn] = {}
    for path in paths:
        state = torch.load(path, weights_only=True)
        size = state["latents"].shape[-1] * 8
        scenes = [
            Scene(**scene | {"items": tuple(Item(**item) for item in scene["items"])})
            for scene in state["scenes"]
        ]
        before = found.get(size, Drawn(state["latents"][:0], []))
        found[size] = Drawn(torch.cat([before.latents, state["latents"]]), before.scenes + scenes)
    return found


def meant(reading: Reading) -> Scene | None:
    """The scene on the grid that is near the picture, or None."""
    items = [_meant(seen) for seen in reading.objects]
    found = [item for item in items if item is not None]
    if reading.background is None or len(found) < len(items) or len(found) not in (1, 2):
        return None
    return Scene(reading.background, tuple(found))


def _meant(seen: Seen) -> Item | None:
    if seen.shape is None or seen.colour is None or (seen.colour, seen.shape) in HELD_OUT:
        return None
    item = Item(seen.shape, seen.colour, seen.size, seen.x, seen.y, seen.radius)
    (on_grid,) = snapped(Scene("white", (item,)), grid=FINE_GRID).items
    shift = np.hypot(item.x - on_grid.x, item.y - on_grid.y)
    return on_grid if shift <= MAX_SHIFT else None


def _draw(folder: Path, size: int, num: int) -> Iterator[torch.Tensor]:
    """Yield the latents of captions, a batch at a time."""
    sampler = Sampler(folder, size=size)
    for rows in batches(num):
        numbers = range(num)[rows]
        rngs = [scene_rng(SEED + size, number) for number in numbers]
        yield sampler.denoise(
            [caption(draw_scene(rng), rng) for rng in rngs],
            numbers,
            guidance=evaluate.GUIDANCE,
            steps=evaluate.STEPS,
        )


def _edit(folder: Path, size: int, num: int) -> Iterator[torch.Tensor]:
    """Yield the latents of edits, a batch at a time."""
    sampler = EditSampler(folder)
    for rows in batches(num):
        numbers = range(num)[rows]
        edits = [draw_training_edit(SEED + size, number) for number in numbers]
        yield sampler.denoise(
            evaluate_edit.pictures(edits, size),
            [edit.instruction for edit in edits],
            numbers,
            guidance=evaluate_edit.GUIDANCE,
            image_guidance=evaluate_edit.IMAGE_GUIDANCE,
            steps=evaluate.STEPS,
        )


def draw(args: argparse.Namespace) -> None:
    """Write `latents`, `[N, 4, H, W]` fp16 and unscaled, and their `scenes`; each batch anew."""
    vae: Any = load_vae(args.model / "vae")
    kept: list[torch.Tensor] = []
    scenes: list[Scene] = []
    asked = 0
    make = _edit if args.edits else _draw
    with mixed_precision():
        for latents in make(args.model, args.size, args.num):
            asked += len(latents)
            for row, picture in zip(latents, decode(vae, latents), strict=True):
                scene = meant(read(picture))
                if scene is not None:
                    kept.append(row)
                    scenes.append(scene)
            print(f"{len(kept)} of {asked}", flush=True)
            Drawn(torch.stack(kept).half(), scenes).save(args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="diffusers folder")
    parser.add_argument("--out", type=Path, required=True, help="file for latents and scenes")
    parser.add_argument("--size", type=int, default=128, help="size in pixels")
    parser.add_argument("--num", type=int, default=2000, help="pictures to draw")
    parser.add_argument("--edits", action="store_true", help="edits instead of prompts")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    draw(args)


if __name__ == "__main__":
    main()
