"""Writes measured results as Markdown between two marks of a page.

    python -m tools.demo_image_model.tables docs/image_model.json docs/image_model.md

All numbers come from the JSON file that `evaluate` and `evaluate_edit` write.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.markdown import page_with
from loadtest.markdown import table as markdown_table
from tools.demo_image_model.questions import ROUND

COMMAND = "python -m tools.demo_image_model.tables"
SUITE_TITLES = {
    "single": "one object",
    "double": "two objects",
    "held_out": "one object, held-out pair",
}
PARTS = ("objects", "colours", "shapes", "size", "place", "relation", "background", "all")


def share(counts: Iterable[int]) -> str:
    """A share and its 95 % Wilson interval, `96.4 % (94.3-97.7)`, or `-` without questions."""
    right, asked = counts
    if not asked:
        return "-"
    z = 1.96
    middle = (right + z * z / 2) / (asked + z * z)
    spread = z / (asked + z * z) * np.sqrt(right * (asked - right) / asked + z * z / 4)
    low, high = max(0.0, middle - spread), min(1.0, middle + spread)
    return f"{100 * right / asked:.1f} % ({100 * low:.1f}-{100 * high:.1f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are all aligned to the left."""
    return markdown_table(header, rows, num_text_columns=len(header))


def images_section(results: Mapping[str, Any]) -> str:
    """Text-to-image results at one size."""
    guidance, steps, size = results["guidance"], results["steps"], results["size"]
    parts = [f"### Pictures of {size} pixels, guidance {guidance:g}, {steps} steps"]
    suites = {name: results[name] for name in SUITE_TITLES if name in results}
    rows = [
        [SUITE_TITLES[name], str(counts["all"][1])]
        + [share(counts[part]) if part in counts else "-" for part in PARTS]
        for name, counts in suites.items()
    ]
    if rows:
        parts.append(table(["prompt", "asked", *PARTS], rows))
    if "circles" in results:
        circles = results["circles"]
        parts.append(
            f"Of {circles['round'][1]} circles asked for alone {share(circles['circle'])} are seen "
            f"as one and {share(circles['round'])} are round (no radius differs from another by "
            f"more than {100 * ROUND:g} %)."
        )
    if "phrases" in results:
        parts.append(
            "The object asked for lies at the place asked for, by the phrase that says the place; "
            "words in brackets stand for their opposites too:"
        )
        rows = [[f"`{n}`", str(c[1]), share(c)] for n, c in sorted(results["phrases"].items())]
        parts.append(table(["phrase", "asked", "right"], rows))
    for name, axis in (("guidance_curve", "guidance"), ("steps_curve", "steps")):
        if name in results:
            parts.append(f"Objects right against {axis}:")
            parts.append(_curve(results[name], axis))
    return "\n\n".join(parts)


def _curve(curve: Mapping[str, Any], axis: str) -> str:
    points = sorted(curve, key=float)
    names = [name for name in SUITE_TITLES if name in curve[points[0]]]
    rows = [[point, *(share(curve[point][name]["objects"]) for name in names)] for point in points]
    return table([axis, *(SUITE_TITLES[name] for name in names)], rows)


def edits_section(results: Mapping[str, Any]) -> str:
    """Editing results at one size."""
    parts = [
        f"### Edits at {results['size']} pixels, guidance {results['guidance']:g}, "
        f"image guidance {results['image_guidance']:g}, {results['steps']} steps"
    ]
    if "kinds" in results:
        ordered = dict(sorted(results["kinds"].items(), key=lambda one: one[0] != "all"))
        parts.append(_verdicts("edit", ordered))
    if "contrast" in results:
        parts.append("A small object beside a large one, told from it by its:")
        parts.append(_verdicts("named by", results["contrast"]))
    if "guidance_grid" in results:
        grid = results["guidance_grid"]
        columns = sorted(next(iter(grid.values())), key=float)
        rows = [
            [guidance, *(share(grid[guidance][column]["success"]) for column in columns)]
            for guidance in sorted(grid, key=float)
        ]
        parts.append("Success against guidance (down) and image guidance (across):")
        parts.append(table(["", *columns], rows))
    return "\n\n".join(parts)


def _verdicts(first: str, results: Mapping[str, Any]) -> str:
    verdicts = ("edited", "kept", "success")
    rows = [
        [name, str(counts["success"][1]), *(share(counts[verdict]) for verdict in verdicts)]
        for name, counts in results.items()
    ]
    return table([first, "asked", *verdicts], rows)


def render_results(results: Mapping[str, Any]) -> str:
    """All sections, pictures before edits, small before large."""
    keys = sorted(results, key=lambda key: (key.split()[0] != "images", int(key.split()[1])))
    sections = {"images": images_section, "edits": edits_section}
    return "\n\n".join(sections[key.split()[0]](results[key]) for key in keys)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="JSON file")
    parser.add_argument("page", type=Path, help="Markdown page, changed in place")
    args = parser.parse_args()
    results = json.loads(args.results.read_text())
    args.page.write_text(
        page_with(args.page.read_text(), {"results": render_results(results)}, COMMAND)
    )


if __name__ == "__main__":
    main()
