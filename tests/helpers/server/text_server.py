"""A server over a scripted engine with a real tokenizer, for the tests of the text routes."""

import json
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from engine.contract.generate import GenerateRequest, ModelInfo
from engine.text.tokenizer import Tokenizer as ModelTokenizer
from tests.helpers.server.fake_engine import FakeEngine
from tests.helpers.server.fake_server import FakeServer
from tests.helpers.server.fake_texts import model_info

MODEL = "org/tiny"
MAX_MODEL_LEN = 256
VOCAB_SIZE = 420
"""The vocabulary's size, more than the tokenizer has, as in models that pad their output layer."""
BOS, EOS = 0, 1

_TEMPLATE = (
    "{% if messages[0].content == 'refuse me' %}{{ raise_exception('refused') }}{% endif %}"
    "{% for m in messages %}<|s|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.arguments.city }}{% endfor %}<|e|>\n"
    "{% endfor %}{% if mood %}[{{ mood }}]{% endif %}"
    "{% if add_generation_prompt %}<|s|>assistant\n{% endif %}"
)
_CORPUS = "the quick brown fox jumps over the lazy dog while seven wizards make toxic brew"


def write_tokenizer(
    folder: Path, *, chat_template: str | None = _TEMPLATE, more_tokens: Sequence[str] = ()
) -> Path:
    """Write a byte-level BPE of 400 tokens that puts `<|s|>` before a plain prompt.

    Args:
        more_tokens: special tokens after `<|s|>` and `<|e|>`.
    """
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|s|>", "<|e|>", *more_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([_CORPUS, _CORPUS.title()] * 3, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single="<|s|> $A", special_tokens=[("<|s|>", BOS)]
    )
    raw.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|s|>", "eos_token": "<|e|>", "chat_template": chat_template}
    text = json.dumps({k: v for k, v in config.items() if v is not None})
    (folder / "tokenizer_config.json").write_text(text)
    return folder


class TextServer(FakeServer):
    """An app, its engine, its tokenizer and a client that talks to it in memory."""

    def __init__(self, folder: Path, *infos: ModelInfo, **settings: Any) -> None:
        self.folder = folder
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        super().__init__(FakeEngine(*infos or (text_info(folder),), reply=babble), **settings)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def say(self, *texts: str) -> None:
        """Answer any prompt from now on with text i (or the last) as completion i."""
        replies = [self.encode(text) for text in texts]
        self.engine.reply = lambda request, index: replies[min(index, len(replies) - 1)]

    def say_tokens(self, tokens: Sequence[int]) -> None:
        self.engine.reply = lambda request, index: tokens

    async def chat(self, **body: Any) -> httpx.Response:
        body.setdefault("messages", [{"role": "user", "content": "hi"}])
        return await self.post("/v1/chat/completions", **body)

    async def complete(self, **body: Any) -> httpx.Response:
        body.setdefault("prompt", "the fox")
        return await self.post("/v1/completions", **body)

    async def ask(self, path: str, **body: Any) -> httpx.Response:
        """Chat or complete, as the path says."""
        return await (self.chat if "chat" in path else self.complete)(**body)

    @property
    def last_request(self) -> GenerateRequest:
        request: GenerateRequest = self.engine.requests[-1]
        return request

    @property
    def last_prompt(self) -> str:
        ids = self.last_request.prompt_token_ids
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text


def text_info(folder: Path, model: str = MODEL, **changes: Any) -> ModelInfo:
    fields = {
        "path": str(folder),
        "max_model_len": MAX_MODEL_LEN,
        "vocab_size": VOCAB_SIZE,
        "eos_token_ids": (EOS,),
    }
    return model_info(model, **(fields | changes))


def babble(request: GenerateRequest, index: int) -> list[int]:
    """Write random tokens, with multi-byte characters cut anywhere; the same for the same
    request."""
    rng = random.Random(repr((request.prompt_token_ids, index, request.sampling.seed)))
    return [rng.randrange(2, 400) for _ in range(request.sampling.max_tokens)]


def events_of(response: httpx.Response) -> list[Any]:
    """Parse the events of a stream, which must be well-formed and end with [DONE]."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = [block for block in response.text.split("\n\n") if block]
    assert blocks[-1] == "data: [DONE]"
    assert blocks.count("data: [DONE]") == 1
    data = [block for block in blocks[:-1] if not block.startswith(":")]
    assert all(block.startswith("data: ") and "\n" not in block for block in data)
    return [json.loads(block.removeprefix("data: ")) for block in data]


def encoding_threads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Record, for each tokenised text, whether that happened outside this thread."""
    outside: list[bool] = []
    encode = ModelTokenizer.encode
    here = threading.get_ident()

    def encode_and_note(self: ModelTokenizer, text: str, **options: Any) -> list[int]:
        outside.append(threading.get_ident() != here)
        return encode(self, text, **options)

    monkeypatch.setattr(ModelTokenizer, "encode", encode_and_note)
    return outside
