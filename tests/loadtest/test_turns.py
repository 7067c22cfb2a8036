"""Programs in turns: the order of their runs, and the table of their times."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from loadtest.machine import provenance
from loadtest.matting import _scaled
from loadtest.results import TURNS_FORMAT, save_result
from loadtest.turns import Turn, take_turns, turns_section


def test_they_warm_up_and_take_turns() -> None:
    seen: list[str] = []

    def turn(name: str, seconds: float | None) -> Turn:
        def work() -> float | None:
            seen.append(name)
            return seconds

        return Turn(name, work)

    turns = [turn("ours", 0.5), turn("theirs", None)]
    shares = take_turns(turns, 3)
    assert seen == ["ours", "theirs"] * 4
    assert turns[0].seconds == [0.5] * 3
    assert len(turns[1].seconds) == 3 and max(turns[1].seconds) < 60
    assert shares.keys() == {"watched", "loadtest", "others", "steal"}


def test_the_page_compares_with_the_first(tmp_path: Path) -> None:
    ours = Turn("ours", lambda: None, [0.2, 0.1, 0.4], peak_mib=300)
    theirs = Turn("theirs", lambda: None, [0.3, 0.3, 0.3])
    runs = [turn.to_json() for turn in (ours, theirs)]
    document = {
        "format": TURNS_FORMAT,
        **provenance("Turns", "tools.some_bench"),
        "rung": "x86-64-v3",
        "rounds": 3,
        "tasks": [{"name": "a task", "runs": runs, "cpu": {"others": 0.031}}],
    }
    save_result(document, tmp_path / "turns.json")
    assert json.loads((tmp_path / "turns.json").read_text()) == document
    page = turns_section(document)
    assert "Turns. 2" in page and ", restricted to x86-64-v3." in page
    assert "    python -m tools.some_bench" in page
    assert "| a task | ours | 200 (100-400) | 1.00 | 300 |" in page
    assert "|  | theirs | 300 (300-300) | 1.50 | - |" in page
    assert "Medians of 3 runs each; other processes took at most 3.1% of the CPU" in page


def test_a_scaled_trimap_keeps_its_levels(tmp_path: Path) -> None:
    levels = np.repeat(np.array([0, 128, 255], np.uint8), 20)[None].repeat(30, 0)
    Image.fromarray(levels).save(tmp_path / "trimap.png")
    scaled = np.asarray(Image.open(_scaled(tmp_path / "trimap.png", 0.01, tmp_path / "s.png")))
    assert abs(scaled.size - 10_000) < 200
    assert set(np.unique(scaled)) == {0, 128, 255}
