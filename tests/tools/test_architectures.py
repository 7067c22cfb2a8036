"""The command that tries every architecture of transformers, on some of them."""

import os
import time

import pytest

from tools.architectures import __main__ as command
from tools.architectures.page import page_of, summary
from tools.architectures.tiny import architectures
from tools.architectures.trial import TOLERANCE, try_architecture


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("Qwen3ForCausalLM", "family"),
        ("FalconForCausalLM", "fallback"),
        ("Lfm3ForCausalLM", "fallback"),  # with states
        ("DeepseekV32ForCausalLM", "fallback"),  # with transformers' own cache
    ],
)
def test_what_is_served_equals_transformers_and_itself(name: str, state: str) -> None:
    row = try_architecture(name)
    assert (row["state"], row["by"]) == (state, name)
    assert row["difference"] < TOLERANCE
    assert row["same_in_company"] and row["same_after_hit"]
    assert row["num_cached_tokens"] == 48


def test_what_is_refused_has_its_sentence() -> None:
    row = try_architecture("BertLMHeadModel")
    assert row["state"] == "refused"
    assert "architecture 'BertLMHeadModel' is not supported" in row["reason"]
    assert "it is an encoder" in row["reason"]


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        (lambda name: os._exit(3), "its process ended with code 3"),
        (lambda name: time.sleep(60), "it takes longer than 1 s"),
        (lambda name: 1 // 0, "ZeroDivisionError: integer division or modulo by zero"),
    ],
)
def test_what_crashes_or_hangs_is_a_row(ends, reason, monkeypatch) -> None:
    monkeypatch.setattr(command, "try_architecture", ends)
    limit_s = 1.0 if "longer" in reason else 60.0
    assert command.tried("AnyForCausalLM", limit_s) == {"state": "failed", "reason": reason}


def test_the_page_counts_and_lists_all_outcomes() -> None:
    served = {"by": "AForCausalLM", "pictures": False, "difference": 1e-6}
    served |= {"same_in_company": True, "same_after_hit": True}
    rows = {
        "AForCausalLM": {"kind": "text", "state": "family", **served},
        "BForCausalLM": {"kind": "text", "state": "fallback", **served, "same_after_hit": False},
        "CForCausalLM": {"kind": "text", "state": "refused", "reason": "it has a <reason>"},
        "DForCausalLM": {"kind": "text", "state": "not made", "reason": "a | b"},
        "EForCausalLM": {"kind": "text", "state": "refused", "reason": "it is an encoder"},
    }
    page = page_of(rows, "9.9")
    assert "| all architectures | 5 |" in page
    assert "| refused | 2 |" in page
    assert (
        "do not continue texts | 1 |" in page
        and "| share of the rest that is served | 50.0% |" in page
    )
    assert "it has a &lt;reason>" in page and "a \\| b" in page
    assert "**no**" in page and "transformers 9.9" in page
    assert [summary(row)[:7] for row in rows.values()] == [
        "family ",
        "fallbac",
        "refused",
        "not mad",
        "refused",
    ]


def test_it_knows_text_and_picture_models() -> None:
    known = architectures()
    assert known["LlamaForCausalLM"] == "text"
    assert known["LlavaForConditionalGeneration"] == "pictures and text"
