import json
import random
from pathlib import Path
from typing import Any

import pytest

from loadtest.record import RequestRecord
from loadtest.results import RUN_FORMAT, load_any_result, render_json, save_result


def random_record(rng: random.Random) -> RequestRecord:
    text_s = sorted(rng.uniform(0, 30) for _ in range(rng.choice([0, 1, 2, 64])))
    return RequestRecord(
        index=rng.randrange(1000),
        max_tokens=64,
        at_s=rng.choice([None, rng.uniform(0, 9)]),
        sent_s=rng.uniform(0, 9),
        text_s=text_s,
        end_s=rng.choice([None, 31.0]),
        prompt_tokens=rng.choice([None, 0, 109]),
        output_tokens=rng.choice([None, 64]),
        cached_tokens=rng.choice([None, 0, 16]),
        finish_reason=rng.choice([None, "length"]),
        error=rng.choice([None, "timeout after 3 s"]),
    )


def test_rows_keep_what_is_measured() -> None:
    rng = random.Random(random.getrandbits(32))
    for _ in range(300):
        record = random_record(rng)
        again = RequestRecord.from_row(json.loads(json.dumps(record.to_row())))
        assert again.sent_s == pytest.approx(record.sent_s, abs=1e-4)
        assert again.at_s == pytest.approx(record.at_s, abs=1e-4)
        assert len(again.text_s) == len(record.text_s)
        assert again.text_s == pytest.approx(record.text_s, abs=64 * 5e-6 + 1e-9)
        for name in ("index", "max_tokens", "end_s", "prompt_tokens", "output_tokens"):
            assert getattr(again, name) == getattr(record, name)
        for name in ("cached_tokens", "finish_reason", "error"):
            assert getattr(again, name) == getattr(record, name)


def test_files_are_json_with_a_line_per_request(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = [random_record(rng).to_row() for _ in range(20)]
    document: dict[str, Any] = {
        "format": RUN_FORMAT,
        "label": "ünïcode",
        "nested": {"empty": {}, "none": None, "list": [], "long": ["x" * 60, {"y": "z" * 60}]},
        "requests": rows,
    }
    path = tmp_path / "deep" / "er" / "result.json"
    save_result(document, path)
    assert load_any_result(path) == document
    assert len([line for line in path.read_text().splitlines() if '"i":' in line]) == 20
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize("value", [[], {}, 3, "x", None, [[]], {"requests": []}, [1.5, True]])
def test_any_json_is_rendered(value: Any) -> None:
    assert json.loads(render_json(value)) == value


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other/1"}', "{"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x\.json"):
        load_any_result(path)
