# /// script
# dependencies = ["langchain", "langchain-openai", "pytest"]
# ///
"""LangChain: https://python.langchain.com/docs/integrations/chat/openai/"""

import asyncio
import os

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

BASE_URL = os.environ["OPENAI_BASE_URL"]
MODEL = "smollm2-135m-instruct"


@pytest.fixture
def llm():
    return ChatOpenAI(model=MODEL, base_url=BASE_URL, temperature=0, max_tokens=64, max_retries=0)


def test_invocation(llm):
    messages = [
        ("system", "You are a helpful assistant that translates English to French."),
        ("human", "I love programming."),
    ]
    message = llm.invoke(messages)
    assert message.content
    assert message.usage_metadata["total_tokens"] > 0
    assert message.response_metadata["finish_reason"] in ("stop", "length")


def test_chaining_and_streaming(llm):
    prompt = ChatPromptTemplate.from_messages(
        [
            ("system", "You translate {input_language} to {output_language}."),
            ("human", "{input}"),
        ]
    )
    chain = prompt | llm
    given = {"input_language": "English", "output_language": "German", "input": "I love trees."}
    whole = chain.invoke(given).content
    assert "".join(chunk.content for chunk in chain.stream(given)) == whole
    assert asyncio.run(chain.ainvoke(given)).content == whole
    assert [m.content for m in chain.batch([given, given])] == [whole, whole]


class GetWeather(BaseModel):
    """Get the current weather in a given location"""

    location: str = Field(description="The city and state, e.g. San Francisco, CA")


@tool
def multiply(a: int, b: int) -> int:
    """Multiply a and b."""
    return a * b


def test_bind_tools(llm):
    chosen = llm.bind_tools([GetWeather], tool_choice="any")
    message = chosen.invoke("what is the weather like in San Francisco")
    [call] = message.tool_calls[:1]
    assert call["name"] == "GetWeather"
    assert isinstance(call["args"]["location"], str)
    free = llm.bind_tools([GetWeather]).invoke("what is the weather like in San Francisco")
    assert free.content or free.tool_calls
    strict = llm.bind_tools([multiply], strict=True, tool_choice="multiply")
    [call] = strict.invoke("What is 3 * 12?").tool_calls
    assert multiply.invoke(call["args"]) == call["args"]["a"] * call["args"]["b"]


def test_streamed_tool_calls(llm):
    chosen = llm.bind_tools([GetWeather], tool_choice="any", parallel_tool_calls=False)
    gathered = None
    for chunk in chosen.stream("what is the weather like in San Francisco"):
        gathered = chunk if gathered is None else gathered + chunk
    [call] = gathered.tool_calls
    assert call["name"] == "GetWeather"
    assert isinstance(call["args"]["location"], str)


class Joke(BaseModel):
    """Joke to tell user."""

    setup: str = Field(description="The setup of the joke", max_length=80)
    punchline: str = Field(description="The punchline to the joke", max_length=80)
    rating: int | None = Field(default=None, description="How funny the joke is, from 1 to 10")


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_with_structured_output(llm, method):
    structured = llm.model_copy(update={"max_tokens": 256}).with_structured_output(
        Joke, method=method
    )
    joke = structured.invoke("Tell me a joke about cats")
    assert isinstance(joke, Joke)


def test_json_mode(llm):
    structured = llm.with_structured_output(None, method="json_mode", include_raw=True)
    answer = structured.invoke("Answer as JSON with the key `answer`: what is 2 + 2?")
    assert answer["raw"].content.startswith("{")


def test_an_agent():
    llm = ChatOpenAI(model=MODEL, base_url=BASE_URL, temperature=0, max_tokens=64, max_retries=0)

    def get_weather(city: str) -> str:
        """Get weather for a given city."""
        return f"It's always sunny in {city}!"

    agent = create_agent(model=llm, tools=[get_weather], system_prompt="You are helpful")
    question = {"messages": [{"role": "user", "content": "what is the weather in sf"}]}
    answer = agent.invoke(question, {"recursion_limit": 6})
    assert answer["messages"][-1].content


class Weather(BaseModel):
    """The weather of a city."""

    city: str = Field(max_length=30)
    temperature: float
    condition: str = Field(max_length=30)


@pytest.mark.parametrize("strict", [None, True])
def test_an_agents_output_by_the_providers_strategy(llm, strict):
    """LangGraph's agent has the server hold the last answer to the schema, which says nothing of
    other properties."""
    schema = Weather.model_json_schema()
    assert "additionalProperties" not in schema
    for form in (Weather, schema):
        strategy = ProviderStrategy(form) if strict is None else ProviderStrategy(form, strict=True)
        longer = llm.model_copy(update={"max_tokens": 256})
        agent = create_agent(model=longer, tools=[], response_format=strategy)
        question = {"messages": [{"role": "user", "content": "What is the weather in Paris?"}]}
        answer = agent.invoke(question)["structured_response"]
        assert Weather.model_validate(answer)


def test_responses():
    llm = ChatOpenAI(model=MODEL, base_url=BASE_URL, use_responses_api=True, max_tokens=32)
    first = llm.invoke("Hi, I'm Bob")
    assert first.text
    second = llm.invoke("What is my name?", previous_response_id=first.response_metadata["id"])
    assert second.text


def test_embeddings():
    embeddings = OpenAIEmbeddings(
        model="all-minilm-l6-v2", base_url=BASE_URL, check_embedding_ctx_length=False
    )
    one = embeddings.embed_query("LangChain is the framework for building reasoning applications")
    two = embeddings.embed_documents(["LangGraph builds agents", "Rain"])
    assert len(one) == len(two[0]) == 384
