"""Gives the editing UNet fresh pictures and instructions, and checks that it did just that.

    python -m tools.demo_image_model.evaluate_edit MODEL --num 500 --json docs/image_model.json

`MODEL` holds `unet_edit` beside the base model's parts, or `--unet` names it. An edit succeeds when
the picture has everything of the target scene and nothing else: each object's pair of colour and
shape, objects that were not to change at their place and of their size, and the background.

`--contrast-num` adds that many edits of a small object beside a large one for each way of naming
it.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from tools.demo_image_model.classify import Reading, Seen, read
from tools.demo_image_model.edits import NAMINGS, Edit, draw_contrast_edit, draw_edit
from tools.demo_image_model.evaluate import Counts, Report, add_arguments, tally
from tools.demo_image_model.questions import SEED, Ask, match
from tools.demo_image_model.render import render
from tools.demo_image_model.sampling import EditSampler, to_uint8
from tools.demo_image_model.scenes import Item, relation_of

GUIDANCE, IMAGE_GUIDANCE = 2.0, 1.5
GUIDANCE_GRID = (1.5, 2.0, 3.0, 4.0, 6.0)
IMAGE_GUIDANCE_GRID = (1.0, 1.2, 1.5, 2.0)
GRID_FIRST = 500
"""The lowest index in the stream of the grid's edits."""
MAX_SHIFT = 0.06
"""Distance from the right place, in image widths, above which an object has moved."""
MAX_GROWTH = 1.2
"""Ratio of radii above which an object's size has changed; large to small is at least 1.29."""
EDIT_SEED, CONTRAST_SEED = SEED + 100, SEED + 200


def judge_edit(edit: Edit, reading: Reading) -> dict[str, bool]:
    """Judge the parts of an edit.

    `edited`: the instructed change is there. `kept`: everything else is as it was. `success`: both.
    A picture with more or fewer objects than the target, or with other pairs, fails both.
    """
    target = edit.target
    asks = tuple(Ask(item.colour, item.shape) for item in target.items)
    matched = match(asks, reading.objects)
    background = reading.background == target.background
    edited = matched is not None and (edit.kind != "background" or background)
    kept = matched is not None and (edit.kind == "background" or background)
    for index, item in enumerate(target.items if matched else ()):
        assert matched is not None
        if index != edit.changed:
            kept = kept and _as_drawn(item, matched[index])
        elif edit.kind == "add":
            edited = edited and _as_said(edit, matched)
        else:
            edited = edited and _as_drawn(item, matched[index])
    return {"edited": edited, "kept": kept, "success": edited and kept}


def _as_drawn(item: Item, seen: Seen) -> bool:
    shift = np.hypot(item.x - seen.x, item.y - seen.y)
    growth = max(item.radius / seen.radius, seen.radius / item.radius)
    return bool(shift <= MAX_SHIFT and growth <= MAX_GROWTH)


def _as_said(edit: Edit, matched: list[Seen]) -> bool:
    added = matched[0]
    if edit.size_said and added.size != edit.target.items[0].size:
        return False
    if edit.target.place is not None and added.place != edit.target.place:
        return False
    return edit.target.relation is None or relation_of(*matched) == edit.target.relation


def pictures(edits: Sequence[Edit], size: int) -> np.ndarray:
    """The edits' source scenes, `[N, size, size, 3]` uint8."""
    images = render([edit.source for edit in edits], size)
    return to_uint8((images.permute(0, 2, 3, 1).numpy() + 1) / 2)


@dataclass(frozen=True, slots=True)
class EditEvaluation:
    """The evaluation of one editing UNet at one size, with its settings."""

    sampler: EditSampler
    size: int
    guidance: float
    image_guidance: float
    steps: int

    def kinds(self, num: int, *, first: int = 0) -> dict[str, Counts]:
        """Counts of all edits together (`all`) and of each kind."""
        numbers = range(first, first + num)
        edits = [draw_edit(EDIT_SEED, i) for i in numbers]
        verdicts = self._judge(edits, [EDIT_SEED + i for i in numbers])
        counts = {"all": tally(verdicts)}
        for kind in sorted({edit.kind for edit in edits}):
            rows = [v for e, v in zip(edits, verdicts, strict=True) if e.kind == kind]
            counts[kind] = tally(rows)
        return counts

    def contrast(self, num: int) -> dict[str, Counts]:
        """Counts for a small object beside a large one, `num` for each way of naming it."""
        return {
            naming: tally(
                self._judge(
                    [draw_contrast_edit(CONTRAST_SEED + turn, i, naming) for i in range(num)],
                    [CONTRAST_SEED + i for i in range(num)],
                )
            )
            for turn, naming in enumerate(NAMINGS)
        }

    def _judge(self, edits: Sequence[Edit], seeds: Sequence[int]) -> list[dict[str, bool]]:
        drawn = self.sampler.draw(
            pictures(edits, self.size),
            [edit.instruction for edit in edits],
            seeds,
            guidance=self.guidance,
            image_guidance=self.image_guidance,
            steps=self.steps,
        )
        return [judge_edit(e, read(picture)) for e, picture in zip(edits, drawn, strict=True)]


def run(args: argparse.Namespace) -> None:
    """Measure everything that the arguments ask for."""
    started_s = time.monotonic()
    sampler = EditSampler(args.model, unet=args.unet)
    settings = {
        "guidance": args.guidance,
        "image_guidance": args.image_guidance,
        "steps": args.steps,
        "size": args.size,
    }
    report = Report(args.json, f"edits {args.size}", settings)
    evaluation = EditEvaluation(sampler, args.size, args.guidance, args.image_guidance, args.steps)
    if args.num:
        report.add("kinds", evaluation.kinds(args.num))
    if args.contrast_num:
        report.add("contrast", evaluation.contrast(args.contrast_num))
    if args.grid_num:
        # Use other edits, so that settings chosen by the grid are not judged on the same ones.
        grid = {
            f"{guidance:g}": {
                f"{image_guidance:g}": replace(
                    evaluation, guidance=guidance, image_guidance=image_guidance
                ).kinds(args.grid_num, first=max(args.num, GRID_FIRST))["all"]
                for image_guidance in IMAGE_GUIDANCE_GRID
            }
            for guidance in GUIDANCE_GRID
        }
        report.add("guidance_grid", grid)
    print(f"{time.monotonic() - started_s:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, guidance=GUIDANCE, asked="edits")
    parser.add_argument("--unet", type=Path, help="editing UNet, if not MODEL/unet_edit")
    parser.add_argument(
        "--contrast-num",
        type=int,
        default=0,
        help="edits of small objects for each way of naming them",
    )
    parser.add_argument(
        "--grid-num", type=int, default=0, help="edits for each pair of guidance scales"
    )
    parser.add_argument("--image-guidance", type=float, default=IMAGE_GUIDANCE)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run(args)


if __name__ == "__main__":
    main()
