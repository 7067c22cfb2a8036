# /// script
# dependencies = ["guidance", "openai", "pytest"]
# ///
"""guidance: https://guidance.readthedocs.io, over its client of vLLM."""

import os

import guidance
import pytest
from guidance import assistant, gen, json, select, system, user
from guidance.models.experimental import VLLMModel
from pydantic import BaseModel, Field

BASE_URL = os.environ["OPENAI_BASE_URL"]


@pytest.fixture
def lm():
    model = VLLMModel("smollm2-135m-instruct", base_url=BASE_URL, api_key="unused", echo=False)
    with system():
        model += "You are a helpful assistant."
    return model


def test_select(lm):
    with user():
        lm += "Is the sky blue or green?"
    with assistant():
        lm += select(["blue", "green"], name="colour")
    assert lm["colour"] in ("blue", "green")


def test_regex(lm):
    with user():
        lm += "When did the second world war end?"
    with assistant():
        lm += "In " + gen("year", regex="19[0-9]{2}")
    assert lm["year"].startswith("19") and len(lm["year"]) == 4


@guidance(stateless=True)
def number(lm):
    return lm + gen(regex="[1-9][0-9]{0,2}")


@guidance(stateless=True)
def total(lm):
    return lm + number() + " + " + number() + " = " + number()


def test_a_grammar(lm):
    with user():
        lm += "Add two numbers."
    with assistant():
        lm += guidance.capture(total(), "sum")
    left, right = lm["sum"].split(" = ")
    assert int(right) and all(map(int, left.split(" + ")))


class Friend(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


def test_json(lm):
    with user():
        lm += "Describe a friend."
    with assistant():
        lm += json("friend", schema=Friend)
    assert Friend.model_validate_json(lm["friend"])
