"""Draws sheets of labelled samples for the documentation.

    python -m tools.demo_image_model.grids MODEL --out docs/images
    python -m tools.demo_image_model.grids MODEL --out docs/images --edits

The prompts are fixed and the seeds count up from 0; no picture is picked or left out.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from tools.demo_image_model.edits import KINDS, draw_edit
from tools.demo_image_model.evaluate import GUIDANCE, GUIDANCE_CURVE, STEPS, STEPS_CURVE
from tools.demo_image_model.evaluate_edit import EDIT_SEED, IMAGE_GUIDANCE, pictures
from tools.demo_image_model.evaluate_edit import GUIDANCE as EDIT_GUIDANCE
from tools.demo_image_model.sampling import EditSampler, Sampler

TILE = 128
"""Pixels of a picture on the sheet; smaller pictures are enlarged by whole pixels."""
LABEL_HEIGHT = 30
LINE_LETTERS = 24

PROMPTS = (
    "a red circle",
    "a large blue star on a white background",
    "a small yellow square at the top",
    "a pink triangle in the bottom left corner",
    "a purple cross on a gray background",
    "an orange star on the left on a black background",
    "a red circle left of a blue square",
    "a yellow triangle above a purple star",
    "a large cyan square below a small pink circle",
    "a green cross to the right of an orange circle",
    "a blue star under a red triangle on a brown background",
    "a pink cross and a yellow circle",
)
HELD_OUT_PROMPTS = (
    "a green star",
    "a purple square",
    "an orange triangle",
    "a cyan circle",
    "a green star left of a red circle",
    "a blue cross above a purple square",
)
CURVE_PROMPTS = ("a red circle left of a blue square", "a small yellow star at the top")
NEGATIVES = (("a circle", ""), ("a circle", "red"), ("a circle", "blue"), ("a star", "circle"))


def sheet(rows: Sequence[tuple[str, np.ndarray]], headings: Sequence[str] = ()) -> Image.Image:
    """A sheet with a row for each (label, `[N, H, W, 3]` uint8), labels at the left."""
    left = 170
    width = left + TILE * max(len(images) for _, images in rows)
    top = LABEL_HEIGHT if headings else 0
    canvas = Image.new("RGB", (width, top + TILE * len(rows)), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    for column, heading in enumerate(headings):
        draw.text((left + TILE * column + 4, 7), heading, "black", font)
    for row, (label, images) in enumerate(rows):
        draw.multiline_text((6, top + TILE * row + 8), wrap(label), "black", font)
        for column, image in enumerate(images):
            at = (left + TILE * column, top + TILE * row)
            canvas.paste(_tile(image), at)
            draw.rectangle((*at, at[0] + TILE - 1, at[1] + TILE - 1), outline="white")
    return canvas


def wrap(text: str) -> str:
    """Lines of at most `LINE_LETTERS` letters, broken between words."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if len(joined) <= LINE_LETTERS or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(word)
    return "\n".join(lines)


def _tile(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image).resize((TILE, TILE), Image.Resampling.NEAREST)


def prompts_sheet(sampler: Sampler, prompts: Sequence[str], seeds: int) -> Image.Image:
    """Each prompt with the same few seeds."""
    rows = []
    for prompt in prompts:
        images = sampler.draw([prompt] * seeds, range(seeds), guidance=GUIDANCE, steps=STEPS)
        rows.append((prompt, images))
    return sheet(rows, [f"seed {seed}" for seed in range(seeds)])


def settings_sheet(sampler: Sampler, columns: Mapping[str, tuple[float, int]]) -> Image.Image:
    """The same seeds in every column, each with (guidance, steps) of its own."""
    rows = []
    for prompt in CURVE_PROMPTS:
        for seed in range(2):
            images = [
                sampler.draw([prompt], [seed], guidance=guidance, steps=steps)
                for guidance, steps in columns.values()
            ]
            rows.append((f"{prompt}, seed {seed}", np.concatenate(images)))
    return sheet(rows, list(columns))


def negatives_sheet(sampler: Sampler, seeds: int) -> Image.Image:
    """The same seeds without and with negative prompts."""
    rows = []
    for prompt, negative in NEGATIVES:
        images = sampler.draw(
            [prompt] * seeds,
            range(seeds),
            negatives=[negative] * seeds,
            guidance=GUIDANCE,
            steps=STEPS,
        )
        rows.append((f"{prompt} negative: {negative or 'none'}", images))
    return sheet(rows, [f"seed {seed}" for seed in range(seeds)])


def edits_sheet(sampler: EditSampler, size: int) -> Image.Image:
    """The first two edits of each kind: the input picture, and the results of three seeds."""
    found = [draw_edit(EDIT_SEED, i) for i in range(200)]
    chosen = [edit for kind in KINDS for edit in [e for e in found if e.kind == kind][:2]]
    sources = pictures(chosen, size)
    columns = [sources]
    for seed in range(3):
        columns.append(
            sampler.draw(
                sources,
                [edit.instruction for edit in chosen],
                [seed] * len(chosen),
                guidance=EDIT_GUIDANCE,
                image_guidance=IMAGE_GUIDANCE,
                steps=STEPS,
            )
        )
    rows = [
        (edit.instruction, np.stack(images)) for edit, *images in zip(chosen, *columns, strict=True)
    ]
    return sheet(rows, ["given", "seed 0", "seed 1", "seed 2"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="diffusers folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the sheets")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--edits", action="store_true", help="the sheet of edits instead")
    parser.add_argument("--unet", type=Path, help="editing UNet, if not MODEL/unet_edit")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.edits:
        editor = EditSampler(args.model, unet=args.unet)
        sheets = {"edits": edits_sheet(editor, args.size)}
    else:
        sampler = Sampler(args.model, size=args.size)
        sheets = {
            "prompts": prompts_sheet(sampler, PROMPTS, args.seeds),
            "held_out": prompts_sheet(sampler, HELD_OUT_PROMPTS, args.seeds),
            "guidance": settings_sheet(
                sampler, {f"guidance {value:g}": (value, STEPS) for value in GUIDANCE_CURVE}
            ),
            "steps": settings_sheet(
                sampler, {f"{value} steps": (GUIDANCE, value) for value in STEPS_CURVE}
            ),
            "negatives": negatives_sheet(sampler, args.seeds),
        }
    for name, image in sheets.items():
        image.save(args.out / f"model_{name}_{args.size}.png", optimize=True)


if __name__ == "__main__":
    main()
