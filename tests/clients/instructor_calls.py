# /// script
# dependencies = ["instructor", "pytest"]
# ///
"""Instructor: https://python.useinstructor.com/"""

import asyncio

import instructor
import openai
import pytest
from instructor.core.exceptions import InstructorRetryException
from pydantic import BaseModel, Field, field_validator

MODEL = "smollm2-135m-instruct"


class User(BaseModel):
    name: str = Field(max_length=40)
    age: int = Field(ge=0, le=150)


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA"])
def test_extraction(mode):
    client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=instructor.Mode[mode])
    user = client.chat.completions.create(
        model=MODEL,
        response_model=User,
        max_tokens=200,
        temperature=0,
        messages=[{"role": "user", "content": "Extract Jason is 25 years old."}],
    )
    assert isinstance(user, User)


def test_from_provider():
    client = instructor.from_provider(f"openai/{MODEL}")
    user = client.create(
        response_model=User,
        max_tokens=200,
        temperature=0,
        messages=[{"role": "user", "content": "John is a 30-year-old engineer."}],
    )
    assert isinstance(user, User)


def test_iterables_and_partial():
    client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=instructor.Mode.JSON_SCHEMA)
    parts = client.chat.completions.create_partial(
        model=MODEL,
        response_model=User,
        max_tokens=200,
        temperature=0,
        messages=[{"role": "user", "content": "Jason is 25 years old."}],
    )
    assert isinstance(list(parts)[-1].age, int)


def test_retries_when_validation_fails():
    class Shout(BaseModel):
        name: str = Field(max_length=20)

        @field_validator("name")
        @classmethod
        def _shouted(cls, value: str) -> str:
            if not value.isupper():
                raise ValueError("must be in capital letters")
            return value

    client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=instructor.Mode.TOOLS)
    with pytest.raises(InstructorRetryException) as caught:
        client.chat.completions.create(
            model=MODEL,
            response_model=Shout,
            max_retries=1,
            max_tokens=60,
            temperature=0,
            messages=[{"role": "user", "content": "My name is jason."}],
        )
    assert caught.value.n_attempts == 2


def test_async():
    async def extract():
        client = instructor.from_openai(openai.AsyncOpenAI(max_retries=0))
        return await client.chat.completions.create(
            model=MODEL,
            response_model=User,
            max_tokens=200,
            temperature=0,
            messages=[{"role": "user", "content": "Jason is 25."}],
        )

    assert isinstance(asyncio.run(extract()), User)
