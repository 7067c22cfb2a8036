"""A server over a scripted engine with a real tokenizer, for the tests of the text routes."""

import asyncio
import contextlib
import json
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from fastapi import FastAPI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from engine.contract.generate import GenerateRequest, ModelInfo
from engine.text.template_process import TemplateProcess
from engine.text.tokenizer import Tokenizer as ModelTokenizer
from server.app import create_app
from server.settings import Settings
from tests.helpers.server.fake_engine import FakeEngineClient, model_info
from tests.helpers.server.listening import listening

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


class KeptTemplate(TemplateProcess):
    """A chat template's process that serves one `TextServer` after the other, as starting it takes
    a tenth of a second."""

    _is_keeping = False
    _kept: ClassVar[dict[bytes, list["KeptTemplate"]]] = {}

    @classmethod
    def taken(cls, source: str, special_tokens: Mapping[str, str]) -> "KeptTemplate":
        """Take a process that has been kept, or make one."""
        made = cls(source, special_tokens)
        kept = cls._kept.get(made._compile)
        return kept.pop() if kept else made

    @classmethod
    @contextlib.contextmanager
    def keeping(cls) -> Iterator[None]:
        """Keep processes that are closed and idle."""
        cls._is_keeping = True
        try:
            yield
        finally:
            cls._is_keeping = False

    def close(self) -> None:
        is_idle = not self._waiting and (self._pump is None or self._pump.done())
        if self._is_keeping and is_idle:
            self._kept.setdefault(self._compile, []).append(self)
        else:
            super().close()


class TextServer:
    """An app, its engine, its tokenizer and a client that talks to it in memory."""

    def __init__(self, folder: Path, *infos: ModelInfo, **settings: Any) -> None:
        self.folder = folder
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.engine = FakeEngineClient(*(infos or (text_info(folder),)), reply=babble)
        self.settings = Settings(**settings)
        self.engine.config_of_server = self.settings.engine_config
        self.app: FastAPI = create_app(self.settings, self.engine)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def say(self, *texts: str) -> None:
        """Answer any prompt from now on with text i (or the last) as completion i."""
        replies = [self.encode(text) for text in texts]
        self.engine.reply = lambda request, index: replies[min(index, len(replies) - 1)]

    def say_tokens(self, tokens: Sequence[int]) -> None:
        self.engine.reply = lambda request, index: tokens

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.client.post(path, json=body)

    async def chat(self, **body: Any) -> httpx.Response:
        body.setdefault("messages", [{"role": "user", "content": "hi"}])
        return await self.post("/v1/chat/completions", **body)

    async def complete(self, **body: Any) -> httpx.Response:
        body.setdefault("prompt", "the fox")
        return await self.post("/v1/completions", **body)

    async def aclose(self) -> None:
        with KeptTemplate.keeping():
            await self.app.state.tandem.texts.aclose()
        await self.client.aclose()

    @property
    def last_request(self) -> GenerateRequest:
        return self.engine.requests[-1]

    def listening(self) -> AbstractAsyncContextManager[str]:
        """Serve on a real port, in this event loop; gives the base URL."""
        return listening(self.app)


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


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (the condition is anybody's state)
            await asyncio.sleep(0.002)
