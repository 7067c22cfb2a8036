"""The page's tables are what was measured: nothing typed by hand, nothing of another day."""

import json
import random
import re

import pytest

from loadtest.markdown import page_with
from tools.quantization_table.formats import FORMATS, LARGE, MODELS
from tools.quantization_table.page import (
    COMMAND,
    DATA,
    PAGE,
    SHOWN_GROUPS,
    SHOWN_KINDS,
    TASKS,
    sections,
)

MIB = 1 << 20


def report(perplexity, divergence, agreement):
    return {
        "tokens": 10,
        "perplexity": perplexity,
        "original_perplexity": 20.0,
        "kl_divergence": divergence,
        "top1_agreement": agreement,
    }


def quality(perplexity, divergence, agreement, **changes):
    whole = report(perplexity, divergence, agreement)
    return {
        **whole,
        "classes": {"digits": whole, "rest": report(perplexity * 2, divergence, agreement)},
        "file_bytes": 90 * MIB,
        "stored_bits": 4.54,
        "types": {},
        "weight_bytes": 100 * MIB,
        "planned_bytes": 700 * MIB,
        **changes,
    }


def served(*rates, **changes):
    runs = [{"tokens_per_s": rate, "others": 0.013} for rate in rates]
    return {
        "worker_bytes": 714 * MIB,
        "front_bytes": 80 * MIB,
        "warnings": [],
        "runs": {
            "1": runs,
            "16": [{**run, "tokens_per_s": 9 * run["tokens_per_s"]} for run in runs],
        },
        **changes,
    }


@pytest.fixture
def data():
    """The results of one model in three formats."""
    rows = {
        "BF16": quality(20.0, 0.0, 1.0, file_bytes=200 * MIB, llama_perplexity=20.02),
        "Q2_K": quality(31.0, 0.4, 0.667, types={"Q4_0": 180, "Q2_K": 30}, llama_perplexity=31.31),
        "GPTQ, 3 bits": quality(4242.4, 1.25, 0.4),
    }
    warning = {"timestamp": "now", "level": "warning", "event": "few bits", "bits": 3.0}
    speeds = {
        "BF16": served(50.0, 70.0, 61.0),
        "Q2_K": served(100.0, 101.0, 102.0, warnings=[warning]),
    }
    machine = {"cores": 2, "cpu": "A Processor", "cpu_flags": "avx2"}
    return {
        "quality": {"models": {MODELS[0].name: rows}},
        "speed": {
            "machine": machine,
            "started_at": "2026-01-02T03:04:05Z",
            "commit": "0123456789abcdef",
            "uncommitted_changes": False,
            "models": {MODELS[0].name: speeds},
        },
    }


def cells(text, name):
    [line] = [line for line in text.splitlines() if line.startswith(f"| {name}")]
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_a_row_says_what_was_measured(data):
    text = sections(data)["formats"]
    assert cells(text, "Q2_K") == [
        *("Q2_K (180 Q4_0, 30 Q2_K)", "4.5", "90", "100", "714", "31.00", "31.31"),
        *("0.4000", "66.7 %", "101", "909"),
    ]
    assert cells(text, "BF16")[-2:] == ["61", "549"]
    # Nobody has served it, and llama.cpp cannot.
    assert cells(text, "GPTQ")[4:7] == ["-", "4,242", "-"]
    assert cells(text, "GPTQ")[-2:] == ["-", "-"]


def test_notes_tell_the_worst(data):
    text = sections(data)["formats"]
    assert "differ by at most 0.99 %, for BF16 by 0.1 %" in text
    assert "medians of 3 rounds" in text and "commit 0123456789ab, 2 cores" in text
    assert "all within 18 %. Other programs took at most 1.3 %" in text
    data["speed"]["uncommitted_changes"] = True
    assert "0123456789ab with changes" in sections(data)["formats"]


def test_classes_and_memory_and_warnings(data):
    found = sections(data)
    assert cells(found["classes"], "Q2_K") == ["Q2_K", "1.55 times, 67 %", "3.10 times, 67 %"]
    title = MODELS[0].title
    # 100 of weights in the place of a file of 200.
    assert cells(found["memory"], f"{title}, BF16")[2:] == ["100", "0.50", "714", "700", "614"]
    assert "614 to 614 MiB here" in found["memory"] and "to within 2 %" in found["memory"]
    [line] = [line for line in found["warnings"].splitlines() if line.startswith("{")]
    assert json.loads(line) == {"level": "warning", "event": "few bits", "bits": 3.0}


def loss(value, half):
    return {"original": 3.0, "difference": value, "low": value - half, "high": value + half}


def test_losses_and_answers_are_told_with_half_of_their_intervals(data):
    row = {
        "groups": {name: loss(0.5, 0.125) for name in SHOWN_GROUPS},
        "kinds": {name: loss(1.5, 0.01) for name in SHOWN_KINDS},
    }
    share = {"first": 0.425, "difference": -0.25, "low": -0.4, "high": -0.06}
    data["losses"] = {MODELS[0].name: {"HQQ, 3 bits": row, "HQQ, 2 bits": row}}
    data["answers"] = {MODELS[0].name: {"BF16": dict.fromkeys(TASKS, share)}}
    assert sections(data)["losses"] == "Not measured yet."
    data["answers"][MODELS[0].name]["HQQ, 3 bits"] = dict.fromkeys(TASKS, share)
    text = sections(data)["losses"]
    assert cells(text, "*original*") == ["*original*", *["3.00"] * 8, "42 %", "42 %"]
    told = [*["+0.50 ±0.12"] * 6, *["+1.50 ±0.01"] * 2, *["-25 ±17"] * 2]
    assert cells(text, "HQQ, 3") == ["HQQ, 3 bits", *told]
    assert "HQQ, 2" not in text


def test_ranges_over_languages_are_told_by_method_and_bits(data):
    def row(least, most):
        values = random.sample(SHOWN_GROUPS, len(SHOWN_GROUPS))
        groups = dict.fromkeys(values, loss((least + most) / 2, 0.1))
        groups |= {values[0]: loss(least, 0.1), values[1]: loss(most, 0.1)}
        return {"groups": groups, "kinds": dict.fromkeys(SHOWN_KINDS, loss(1.0, 0.1))}

    rows = {
        "HQQ, 3 bits": row(2.0, 3.25),
        "GPTQ, 3 bits": row(0.5, 1.5),
        "GPTQ, 4 bits": row(-0.25, 0.75),
        "Q2_K": row(0.125, 4.0),
    }
    share = {"first": 0.425, "difference": -0.25, "low": -0.4, "high": -0.06}
    answers = dict.fromkeys(["BF16", *rows], dict.fromkeys(TASKS, share))
    data |= {"losses": {MODELS[0].name: rows}, "answers": {MODELS[0].name: answers}}
    assert sections(data)["losses"].endswith(
        "Depending on the language, GPTQ adds -0.25 to 0.75 in 4 bits, 0.50 to 1.50 in 3 bits; "
        "HQQ adds 2.00 to 3.25 in 3 bits."
    )


def test_memory_of_models_that_are_not_compared(data):
    memory = {"worker_bytes": 714 * MIB, "planned_bytes": 700 * MIB, "file_bytes": 100 * MIB}
    data["memory"] = {
        LARGE.name: {
            "BF16": {**memory, "weight_bytes": 100 * MIB},
            "Q4_0": {**memory, "weight_bytes": 37 * MIB},
        }
    }
    text = sections(data)["memory"]
    assert cells(text, f"{LARGE.title}, Q4_0")[2:] == ["37", "0.37", "714", "700", "677"]
    assert "at most 0.4 times BF16's file plus 674 MiB;" in text
    assert "its weights take 0.37 to 0.37 times that file. Everything but" in text
    assert "614 to 677 MiB here" in text


def test_nothing_is_said_of_what_was_not_measured():
    for text in sections({}).values():
        assert not re.search(r"\d", text)


def test_only_what_is_between_the_marks_is_written():
    page = PAGE.read_text()
    marked = page_with(page, dict.fromkeys(sections({}), "new"), COMMAND)
    assert marked.count("\n\nnew\n\n<!-- end -->\n") == len(sections({}))
    assert page_with(marked, sections(json.loads(DATA.read_text())), COMMAND) == page


def test_the_page_has_the_numbers_of_its_data():
    page = PAGE.read_text()
    written = page_with(page, sections(json.loads(DATA.read_text())), COMMAND)
    assert written == page, "run: python -m tools.quantization_table page"


def test_formats_have_files_of_their_own_or_are_made_at_load():
    stored = [one.ending for one in FORMATS if not one.is_made_at_load]
    assert len(set(stored)) == len(stored)
    assert len({one.name for one in FORMATS}) == len(FORMATS)
