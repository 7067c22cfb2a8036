# /// script
# dependencies = ["dspy[numpy]", "pytest"]
# ///
"""DSPy: https://dspy.ai/"""

import os

import dspy
import litellm
import pytest

BASE_URL = os.environ["OPENAI_BASE_URL"]


@pytest.fixture
def lm():
    # DSPy asks LiteLLM whether a model follows a schema.
    known = {"litellm_provider": "openai", "mode": "chat", "supports_response_schema": True}
    litellm.register_model({"openai/smollm2-135m-instruct": known})
    return dspy.LM(
        "openai/smollm2-135m-instruct",
        api_base=BASE_URL,
        api_key="unused",
        model_type="chat",
        max_tokens=200,
        temperature=0.0,
        cache=False,
        num_retries=0,
    )


def test_calling_the_model_directly(lm):
    assert lm("Say this is a test!", temperature=0.7, max_tokens=32)[0]
    assert lm(messages=[{"role": "user", "content": "Say this is a test!"}], max_tokens=32)[0]


class Extract(dspy.Signature):
    """Extract the city from text."""

    text: str = dspy.InputField()
    city: str = dspy.OutputField()
    is_capital: bool = dspy.OutputField()


def test_a_typed_signature(lm):
    """By JSON that the server holds to the signature's types."""
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        found = dspy.Predict(Extract)(text="Paris is the capital of France.")
    assert isinstance(found.city, str)
    assert isinstance(found.is_capital, bool)


def test_chain_of_thought(lm):
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        answer = dspy.ChainOfThought("question -> answer: float")(question="What is two plus two?")
    assert isinstance(answer.answer, float)
    assert answer.reasoning


def test_embeddings():
    embedder = dspy.Embedder(
        "openai/all-minilm-l6-v2", api_base=BASE_URL, api_key="unused", caching=False
    )
    assert embedder(["hello", "world"]).shape == (2, 384)
