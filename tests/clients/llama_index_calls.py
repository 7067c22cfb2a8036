# /// script
# dependencies = [
#   "llama-index-core",
#   "llama-index-llms-openai-like",
#   "llama-index-embeddings-openai-like",
#   "pytest",
# ]
# ///
"""LlamaIndex: https://docs.llamaindex.ai/en/stable/examples/llm/openai/, by its class for servers
that speak as OpenAI's does."""

import asyncio
import os

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

BASE_URL = os.environ["OPENAI_BASE_URL"]
MODEL = "smollm2-135m-instruct"


@pytest.fixture
def llm():
    return OpenAILike(
        model=MODEL,
        api_base=BASE_URL,
        api_key="unused",
        context_window=8192,
        is_chat_model=True,
        is_function_calling_model=True,
        should_use_structured_outputs=True,
        temperature=0,
        max_tokens=96,
        max_retries=0,
    )


def test_complete_and_chat(llm):
    whole = llm.complete("Paul Graham is ").text
    assert whole
    assert [part.delta for part in llm.stream_complete("Paul Graham is ")]
    messages = [
        ChatMessage(role="system", content="You are a pirate with a colorful personality"),
        ChatMessage(role="user", content="What is your name"),
    ]
    whole = llm.chat(messages).message.content
    assert "".join(part.delta or "" for part in llm.stream_chat(messages)) == whole
    assert asyncio.run(llm.achat(messages)).message.content == whole


class Song(BaseModel):
    """A song with name and artist"""

    name: str = Field(max_length=40)
    artist: str = Field(max_length=40)


def generate_song(name: str, artist: str) -> Song:
    """Generates a song with provided name and artist."""
    return Song(name=name, artist=artist)


def test_function_calling(llm):
    tool = FunctionTool.from_defaults(fn=generate_song)
    response = llm.predict_and_call([tool], "Pick a random song for me", tool_required=True)
    assert "name=" in str(response)
    chosen = llm.chat_with_tools([tool], user_msg="Pick a random song", tool_choice="required")
    calls = llm.get_tool_calls_from_response(chosen)
    assert calls[0].tool_name == "generate_song"


def test_structured_prediction(llm):
    prompt = PromptTemplate("Generate a song about {topic}.")
    song = llm.structured_predict(Song, prompt, topic="the sea")
    assert isinstance(song, Song)
    structured = llm.as_structured_llm(Song)
    message = ChatMessage.from_str("Let's create a song about rain.")
    assert isinstance(structured.chat([message]).raw, Song)


def test_an_agent(llm):
    def multiply(a: float, b: float) -> float:
        """Useful for multiplying two numbers."""
        return a * b

    agent = FunctionAgent(tools=[multiply], llm=llm, system_prompt="You multiply two numbers.")

    async def run():
        return await agent.run("What is 1234 * 4567?", max_iterations=4)

    assert str(asyncio.run(run()))


def test_embeddings():
    embedder = OpenAILikeEmbedding(
        model_name="all-minilm-l6-v2", api_base=BASE_URL, api_key="unused"
    )
    assert len(embedder.get_text_embedding("Hello World!")) == 384
    assert len(embedder.get_text_embedding_batch(["a", "b", "c"])) == 3
