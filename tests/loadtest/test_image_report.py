from typing import Any

from loadtest.image_record import ImageRecord, summarise_images
from loadtest.image_report import images_section
from loadtest.record import RequestRecord
from loadtest.results import IMAGES_FORMAT
from tests.helpers.loadtest.documents import CPU, provenance

DRAW = {
    "name": "draw",
    "kind": "images",
    "servers": ["ours", "one", "theirs"],
    "size": 100,
    "steps": "10:40",
    "guidance": 4.0,
    "num_requests": 2,
    "clients": 8,
}
WAIT = {
    "name": "wait",
    "kind": "behind",
    "servers": ["ours"],
    "size": 100,
    "steps": "10",
    "guidance": 4.0,
    "num_requests": 1,
    "num_long": 2,
    "long_steps": 50,
    "delay_s": 0.3,
}
READ = {
    "name": "read",
    "kind": "text",
    "servers": ["ours", "theirs"],
    "size": 100,
    "steps": "10",
    "guidance": 4.0,
    "num_requests": 1,
    "text_model": "t",
    "clients": 4,
}


def phase(records: list[Any], wall_s: float, memory_mib: float = 300.0) -> dict[str, Any]:
    return {
        "summary": {"wall_s": wall_s, "num_planned": len(records), "images_s": 999.0},
        "cpu": CPU,
        "memory": {"pss_mib": memory_mib, "peak_pss_mib": memory_mib + 1},
        "requests": [record.to_row() for record in records],
    }


def drawing(server: str, repeat: int, end_s: float, wall_s: float) -> dict[str, Any]:
    records = [ImageRecord(i, 100, 30, end_s=end_s) for i in range(2)]
    where = {"server": server, "scenario": "draw", "repeat": repeat, "variant": "--fast"}
    return where | {"quiet": True, "phases": {"images": phase(records, wall_s)}}


def waiting(solo_s: float, short_s: list[float], long_s: float) -> dict[str, Any]:
    phases = {"solo": phase([ImageRecord(0, 100, 10, end_s=solo_s)], solo_s)}
    for i, end_s in enumerate(short_s):
        records = [
            ImageRecord(0, 100, 50, role="long", end_s=long_s),
            ImageRecord(1, 100, 50, role="long", end_s=9.0),
            ImageRecord(2, 100, 10, role="short", sent_s=0.3, end_s=end_s),
        ]
        phases[f"behind {i + 1}"] = phase(records, 9.0)
    where = {"server": "ours", "scenario": "wait", "repeat": 0, "variant": ""}
    return where | {"quiet": False, "phases": phases}


def reading() -> dict[str, Any]:
    def text(gap_s: float) -> dict[str, Any]:
        text_s = [0.1, 0.1 + gap_s]
        return phase([RequestRecord(0, 2, text_s=text_s, end_s=1.0, output_tokens=2)], 1.0)

    pictures = [ImageRecord(0, 100, 10, end_s=0.5), ImageRecord(1, 100, 10, end_s=0.5)]
    beside = text(0.03) | {
        "images": {
            "summary": summarise_images(pictures, 4.0, 2),
            "requests": [record.to_row() for record in pictures],
        }
    }
    where = {"server": "ours", "scenario": "read", "repeat": 0, "variant": ""}
    return where | {"quiet": True, "phases": {"alone": text(0.02), "beside": beside}}


def document(*runs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        **provenance(IMAGES_FORMAT, "Pictures", day=2),
        "quick": False,
        "servers": [
            {"name": name, "version": None, "model": "m", "command": f"exec {name}"}
            for name in ("ours", "one", "theirs")
        ],
        "scenarios": [DRAW, WAIT, READ],
        "repeats": 3,
        "max_others": 0.04,
        "partial": False,
        "trials": [],
        "starts": [],
        "discarded": [],
        "runs": list(runs),
    } | changes


def render(*runs: dict[str, Any], **changes: Any) -> str:
    return images_section(document(*runs, **changes))


def test_medians_and_ratios_of_pictures_per_second() -> None:
    runs = [drawing("ours", i, 0.5, wall_s) for i, wall_s in enumerate((1.0, 2.0, 0.5))]
    runs += [drawing("one", 0, 1.0, 4.0), drawing("theirs", 0, 2.0, 8.0)]
    trial = drawing("theirs", 0, 1.0, 1.0) | {"variant": "--slow"}
    page = render(*runs, trials=[trial])
    assert "Pictures. 2026-01-02, commit 0123456789ab" in page
    assert "100x100 px, 10 to 40 steps, guidance 4; 2 requests from 8 clients." in page
    # 2 pictures in 1, 2 and 0.5 s; 2 x 0.01 megapixels x 30 steps in 1 s.
    assert "| ours | `--fast` | 2.00 (1.00-4.00) | 500 / 500 / 500 | 0.60 | 301 | 0 |" in page
    assert "| ours / one | 4.00 | 0.50 |" in page
    assert "| ours / theirs | 8.00 | 0.25 |" in page
    assert "| one / theirs | 2.00 | 0.50 |" in page
    assert "in one short run each: theirs `--slow` 2.00." in page
    assert "Versions" not in page, "these servers have none"
    assert "999" not in page, "numbers come from the rows, not from the summary"


def test_a_short_job_behind_long_ones() -> None:
    page = render(waiting(0.2, [0.3, 0.5], long_s=0.7))
    # Medians: 200 and 400 ms. The first long one ended 0.1 s after the first short one, but before
    # the second.
    assert "| ours † | 200 | 400 | 2.00 | 2.50 | 1 | 0 |" in page
    assert "sent 300 ms after 2 requests of 50 steps, 1 times." in page


def test_text_beside_pictures() -> None:
    page = render(reading())
    assert "| ours | 20.0 / 20.0 | 30.0 / 30.0 | 100 | 100 | 2.0 | 2.0 | 0.50 | 0 |" in (page)
    assert "1 completions of t, one at a time, alone and beside 4 image clients" in page
    assert "**draw**" not in page, "what nobody measured is not there"


def test_failures_are_counted() -> None:
    failed = drawing("ours", 0, 0.5, 1.0)
    failed["phases"]["images"]["requests"][1]["error"] = "HTTP 500"
    assert "| 1.00 | 500 / 500 / 500 | 0.30 | 301 | 1 |" in render(failed)
    none = drawing("ours", 0, 0.5, 1.0)
    for row in none["phases"]["images"]["requests"]:
        row["error"] = "HTTP 500"
    assert "| 0.00 | - / - / - | 0.00 | 301 | 2 |" in render(none)


def test_a_quick_run_says_so() -> None:
    page = render(drawing("ours", 0, 0.5, 1.0), quick=True, partial=True)
    assert "Cut short: not every repeat was measured. A quick run: these numbers mean nothing." in (
        page
    )
