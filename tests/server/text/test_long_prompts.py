"""Prompts that cannot fit, long ones that can, and what others notice of them."""

import asyncio
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, processors

from engine.errors import InvalidParameter
from engine.text import long_text
from engine.text.long_text import LongText
from engine.text.tokenizer import load_tokenizer
from server.protocol.common import MAX_PROMPT_TOKENS
from server.text import texts as texts_module
from server.text.encoding_pool import EncodingPool
from server.text.prompt_limit import PromptLimit
from server.text.texts import ModelText
from tests.helpers.server.fake_server import error_of, until
from tests.helpers.server.text_server import MAX_MODEL_LEN, TextServer, encoding_threads, text_info

WORDS = "the quick brown fox jumps over the lazy dog "
LONG = WORDS * 5000
"""220,000 characters: four parts."""
LARGE_CONTEXT = 200_000


def large_server(folder: Path, **settings: Any) -> TextServer:
    return TextServer(folder, text_info(folder, max_model_len=LARGE_CONTEXT), **settings)


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("text", ["7" * 3_000_000, WORDS * 60_000, "=" * 3_000_000], ids=len)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "list"])
async def test_what_cannot_fit_is_refused_before_it_is_tokenised(
    server: TextServer, monkeypatch: pytest.MonkeyPatch, path: str, text: str
) -> None:
    tokenised = encoding_threads(monkeypatch)
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": text},
        "/v1/chat/completions": {"messages": messages(text)},
        "/tokenize": {"prompt": text},
        "list": {"prompt": ["the fox", text]},
    }
    error = error_of(
        await server.post("/v1/completions" if path == "list" else path, **bodies[path])
    )
    assert "at least" in error["message"]
    assert tokenised == []
    assert server.engine.requests == []
    if path != "/tokenize":
        assert error["code"] == "context_length_exceeded"
        limit = f"maximum context length is {MAX_MODEL_LEN} tokens"
        assert limit in error["message"]


async def test_no_limit_is_advised_where_tokens_were_not_counted(server: TextServer) -> None:
    """A prompt that is refused by its characters may have more tokens than are known of."""
    text = "=" * random.randint(MAX_MODEL_LEN // 2, MAX_MODEL_LEN) * 40
    for path, fields in (
        ("/v1/chat/completions", {"messages": messages(text)}),
        ("/v1/completions", {"prompt": text}),
    ):
        response = await server.post(path, max_tokens=MAX_MODEL_LEN, **fields)
        message = response.json()["error"]["message"]
        assert "at least" in message and "can be at most" not in message, message


async def test_tokens_that_a_request_names_itself_are_counted_too(server: TextServer) -> None:
    error = error_of(await server.post("/detokenize", tokens=[5] * 65_537))
    assert "65537 tokens were sent; the limit is 65536" in error["message"]
    assert (await server.post("/detokenize", tokens=[5] * 65_536)).status_code == 200


@pytest.mark.parametrize(
    ("path", "field"), [("/detokenize", "tokens"), ("/v1/completions", "prompt")]
)
async def test_ids_by_the_million_are_refused_unread(
    server: TextServer, path: str, field: str
) -> None:
    """What a body of 32 MiB may hold took a second of everybody's time to look at."""
    error = error_of(await server.post(path, **{field: [1] * (MAX_PROMPT_TOKENS + 1)}))
    assert error["param"] == field


async def test_counting_may_go_beyond_the_context(server: TextServer) -> None:
    count = (await server.post("/tokenize", prompt=WORDS * 1000)).json()["count"]
    assert count > 4 * MAX_MODEL_LEN


async def test_the_prompts_of_a_list_have_a_limit_together(tokenizer_folder: Path) -> None:
    server = large_server(tokenizer_folder)
    error = error_of(await server.complete(prompt=["7 " * 90_000] * 40))
    assert "together; the limit is 3200000" in error["message"]


async def test_a_stretch_that_cannot_be_cut_has_a_limit(tokenizer_folder: Path) -> None:
    """It might fit, so the numbers alone do not refuse it."""
    server = large_server(tokenizer_folder)
    for text in ("x" * 1_100_000, WORDS * 3000 + "x" * 1_100_000):
        longest = max(len(word) for word in server.tokenizer.get_vocab())
        assert len(text) / longest < LARGE_CONTEXT
        error = error_of(await server.complete(prompt=text, truncate_prompt_tokens=10))
        assert "where this model's tokenizer cannot split it" in error["message"]


def test_a_text_without_cuts_is_searched_no_further_than_one_may_be_long(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every thread waits for a search."""
    text = LongText(load_tokenizer(tokenizer_folder))
    num_searched = 0
    search = text.cuts.first

    def note(text: str, start: int, end: int) -> int | None:
        nonlocal num_searched
        num_searched += end - start
        return search(text, start, end)

    monkeypatch.setattr(text.cuts, "first", note)
    stretch = "x" * (8 * long_text.LONGEST_PART_CHARS)
    starts = []
    with pytest.raises(InvalidParameter, match="cannot split it"):
        for start in text.tails(f"{WORDS}{stretch} {WORDS}", 10, LARGE_CONTEXT):
            starts.append(start)
    assert starts == [len(WORDS) + len(stretch)]
    assert num_searched < 3 * long_text.LONGEST_PART_CHARS


def test_tails_begin_where_the_text_may_be_cut(tokenizer_folder: Path) -> None:
    text = LongText(load_tokenizer(tokenizer_folder))
    whole = " ".join(random.choices(["a", "bc" * 400, "d e", "x" * 9000], k=300))
    expected: list[int] = []
    for number in range(20):
        start = len(whole) - (4096 << number)
        end = expected[-1] if expected else len(whole)
        cut = text.cuts.first(whole, start, end) if start > 0 else None
        expected += [] if cut is None else [cut]
    assert list(text.tails(whole, 10, LARGE_CONTEXT)) == [*expected, 0]


async def test_long_prompts_have_the_tokens_of_the_whole(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = encoding_threads(monkeypatch)
    server = large_server(tokenizer_folder)
    assert (await server.complete(prompt=LONG, max_tokens=1)).status_code == 200
    assert server.last_request.prompt_token_ids == server.tokenizer.encode(LONG).ids
    await server.complete(prompt=LONG, max_tokens=1, truncate_prompt_tokens=1000)
    assert server.last_request.prompt_token_ids == server.tokenizer.encode(LONG).ids[-1000:]
    await server.chat(messages=messages(LONG), max_tokens=1)
    text = f"<|s|>user\n{LONG}<|e|>\n<|s|>assistant\n"
    assert server.last_request.prompt_token_ids == server.encode(text)
    assert len(outside) > 8
    assert all(outside)


async def test_truncation_tokenises_the_end_only(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    encode = LongText.encode

    def encode_and_note(self: LongText, part: str) -> list[int]:
        lengths.append(len(part))
        return encode(self, part)

    monkeypatch.setattr(LongText, "encode", encode_and_note)
    server = large_server(tokenizer_folder)
    text = WORDS * 60_000
    await server.complete(prompt=text, max_tokens=1, truncate_prompt_tokens=100)
    assert sum(lengths) < 20_000
    ids = server.encode(text[-10_000:])
    assert server.last_request.prompt_token_ids == ids[-100:]


async def test_random_texts_in_small_parts_against_the_whole(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow reference: tokenise everything, then cut."""
    monkeypatch.setattr(long_text, "PART_CHARS", 30)
    monkeypatch.setattr(long_text, "_LEAST_TAIL_CHARS", 10)
    monkeypatch.setattr(long_text, "_CHARS_PER_TOKEN", 2)
    monkeypatch.setattr(texts_module, "THREAD_THRESHOLD_CHARS", 0)
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    tokenizer = load_tokenizer(tokenizer_folder)
    text_side = ModelText(tokenizer, EncodingPool(100))
    atoms = ["the", "fox", "7", "é", "你好", "<|s|>", "<|e|>", "!", "\n", "  ", "x" * 50, "toxic"]
    for _ in range(150):
        text = "".join(
            rng.choice(atoms) + rng.choice(["", " ", " ", " "]) for _ in range(rng.randint(1, 60))
        )
        special = rng.random() < 0.5
        whole = tokenizer.encode(text, add_special_tokens=special)
        keep = rng.choice([None, 1, 2, 5, 20, 10_000])
        limit = PromptLimit(10_000, 10_000, lambda n, _: InvalidParameter(str(n)), "prompt", keep)
        [ids] = await text_side.encode_all([text], add_special_tokens=special, limit=limit)
        assert ids == (whole if keep is None else whole[-keep:]), f"seed {seed}: {text!r}"
        exact = PromptLimit(len(whole), 10_000, lambda n, _: InvalidParameter(str(n)), "prompt")
        await text_side.encode_all([text], add_special_tokens=special, limit=exact)
        one_less = PromptLimit(len(whole) - 1, 10_000, lambda n, _: InvalidParameter(str(n)), "p")
        with pytest.raises(InvalidParameter):
            await text_side.encode_all([text], add_special_tokens=special, limit=one_less)
    text_side.close()


@pytest.mark.parametrize("thread", [False, True], ids=["short", "in a thread"])
async def test_a_text_cut_at_its_end_against_the_library(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, thread: bool
) -> None:
    """The tokens that encoders put around every text stay."""
    if thread:
        monkeypatch.setattr(long_text, "PART_CHARS", 30)
        monkeypatch.setattr(texts_module, "THREAD_THRESHOLD_CHARS", 0)
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.raw.post_processor = processors.TemplateProcessing(
        single="<|s|> $A <|e|>", special_tokens=[("<|s|>", 0), ("<|e|>", 1)]
    )
    reference = Tokenizer.from_str(tokenizer.raw.to_str())
    text_side = ModelText(tokenizer, EncodingPool(100))
    assert text_side.num_added_tokens == 2
    for _ in range(50):
        text = " ".join(random.choices(WORDS.split(), k=random.randint(1, 60)))
        most = random.randint(3, 40)
        reference.enable_truncation(most)
        limit = PromptLimit(most, 10_000, lambda n, _: InvalidParameter(str(n)), "p", cuts_end=True)
        [ids] = await text_side.encode_all([text], add_special_tokens=True, limit=limit)
        assert ids == reference.encode(text).ids
    text_side.close()


class Parts(list[str]):
    """The parts of long texts whose encoding has begun; it takes until `go_on` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self._lock = threading.Lock()

    def encode(self, part: str) -> list[int]:
        with self._lock:
            self.append(part[:12])
        assert self.go_on.wait(60)
        return [5] * 100


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Parts]:
    parts = Parts()
    monkeypatch.setattr(LongText, "encode", lambda self, part: parts.encode(part))
    yield parts
    parts.go_on.set()


async def test_a_small_chat_beside_eight_long_prompts(tokenizer_folder: Path, parts: Parts) -> None:
    server = large_server(tokenizer_folder)
    assert (await server.chat(max_tokens=1)).status_code == 200
    long = [
        asyncio.create_task(server.complete(prompt=f"prompt{i} " + LONG, max_tokens=1))
        for i in range(8)
    ]
    await until(lambda: len(parts) > 0 and server.state.encoding_pool._num_texts == 8)
    assert (await server.chat(max_tokens=1)).status_code == 200
    assert not any(task.done() for task in long)
    parts.go_on.set()
    assert [task.status_code for task in await asyncio.gather(*long)] == [200] * 8
    # They take turns: each has had a part before any has had its last.
    assert len(set(parts[:16])) > 8


async def test_more_long_texts_than_may_wait(tokenizer_folder: Path, parts: Parts) -> None:
    server = large_server(tokenizer_folder, max_queued_encodings=2)
    await server.chat(max_tokens=1)
    long = [asyncio.create_task(server.complete(prompt=LONG, max_tokens=1)) for _ in range(2)]
    await until(lambda: len(parts) > 0)
    for path, body in (
        ("/v1/completions", {"prompt": LONG}),
        ("/tokenize", {"prompt": LONG}),
        ("/v1/chat/completions", {"messages": messages(LONG)}),
        ("/detokenize", {"tokens": [5] * 10_000}),
    ):
        response = await server.post(path, **body)
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) > 0
        assert "long texts are being tokenised" in response.json()["error"]["message"]
    assert (await server.chat(max_tokens=1)).status_code == 200
    parts.go_on.set()
    assert [task.status_code for task in await asyncio.gather(*long)] == [200] * 2
    assert (await server.complete(prompt=LONG, max_tokens=1)).status_code == 200


async def test_a_client_that_leaves_takes_its_text_along(
    tokenizer_folder: Path, parts: Parts
) -> None:
    server = large_server(tokenizer_folder)
    async with server.listening() as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        bodies = (
            ("/v1/completions", {"prompt": LONG}),
            ("/v1/chat/completions", {"messages": messages(LONG)}),
            ("/tokenize", {"prompt": LONG}),
        )
        leaving = [
            asyncio.create_task(client.post(path, json=body | {"max_tokens": 1}))
            for path, body in bodies
        ]
        pool = server.state.encoding_pool
        await until(lambda: len(parts) > 0 and pool._num_texts == 3)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        await until(lambda: pool._num_texts == 0)
    begun = len(parts)
    parts.go_on.set()
    await asyncio.gather(*(pool.run(int) for _ in range(8)))  # behind all that was asked for
    assert len(parts) == begun < 12
    await until(lambda: server.state.admission.num_in_flight() == 0)
    assert server.engine.requests == []
