"""Pictures in chats, through the wire of every dialect."""

import asyncio
import base64
import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageOps

from engine.contract.picture_facts import Crop, PictureFacts
from engine.pictures.crops import cut_crops
from server.images.picture_processes import PictureProcesses
from tests.helpers.server.fake_images import image_info
from tests.helpers.server.fake_server import answer_of, until
from tests.helpers.server.hostile_files import frames, jpeg_of_scans, png_of_size, truncated
from tests.helpers.server.image_server import ImageServer
from tests.helpers.server.picture_server import (
    FACTS,
    FACTS_OF_ANY_SIZE,
    FACTS_WITH_LINES,
    FACTS_WITH_MOSAICS,
    LIST_TEMPLATE,
    ROUTES,
    STRING_TEMPLATE,
    data_url,
    encoded,
    noise,
    picture_server,
)
from tests.helpers.server.text_server import TextServer


@pytest.fixture
async def seeing(tmp_path: Path) -> TextServer:
    return picture_server(tmp_path)


def refused(server: TextServer, answer: Any, said: str, status: int = 400) -> None:
    """Check a refusal: it says why, and leaves nothing behind."""
    assert answer.status_code == status, answer.text
    assert said in json.dumps(answer.json(), ensure_ascii=False), answer.text
    assert not server.engine.live
    assert server.state.admission.num_in_flight() == 0
    assert server.state.pictures.budget.num_taken == 0


def shown(picture: Image.Image) -> list[bytes]:
    """The crops of a picture, as transformers would make them from the file."""
    flat = ImageOps.exif_transpose(picture)
    assert flat is not None
    if "A" in flat.getbands() or "transparency" in flat.info:
        flat = flat.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", flat.size, "white"), flat)
    pixels = np.asarray(flat.convert("RGB"))
    crops = [p for p in FACTS.pieces(*flat.size) if isinstance(p, Crop)]
    return [crop.tobytes() for crop in cut_crops(pixels, crops, FACTS.resampling)]


def place_of(picture: Image.Image) -> str:
    """The text that the tokenizer would read in a picture's place."""
    rows = FACTS.placeholder * FACTS.rows_per_crop
    return "".join(p if isinstance(p, str) else rows for p in FACTS.pieces(*picture.size))


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(*args: Any) -> None:
        raise AssertionError("a picture is decoded")

    monkeypatch.setattr(PictureProcesses, "read", read)


async def test_every_dialect_shows_pictures(
    seeing: TextServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt is the same in all of them, and counted without decoding."""
    pictures = [noise() for _ in range(random.randint(1, 3))]
    files = [encoded(picture) for picture in pictures]
    expected = [
        *seeing.encode("<|s|>user\n"),
        *[token for picture in pictures for token in seeing.encode(place_of(picture))],
        *seeing.encode("what?<|e|>\n<|s|>assistant\n"),
    ]
    starts = [i for i, token in enumerate(expected) if token == FACTS.placeholder_id]
    for name, route in ROUTES.items():
        answer = await seeing.post(route.path, **route.body(files))
        assert answer.status_code == 200, (name, answer.text)
        request = seeing.last_request
        assert request.prompt_token_ids == expected, name
        assert [part.content for part in request.states] == [c for p in pictures for c in shown(p)]
        assert [part.start for part in request.states] == starts[:: FACTS.rows_per_crop]
        assert {part.length for part in request.states} == {FACTS.rows_per_crop}
        usage = answer.json().get("usage") or {"prompt": answer.json().get("prompt_eval_count")}
        assert len(expected) in usage.values(), name
        assert seeing.state.pictures.budget.num_taken == 0
    forbid_decoding(monkeypatch)
    for name, route in ROUTES.items():
        if route.counts is not None:
            path, field = route.counts
            answer = await seeing.post(path, **route.body(files))
            assert answer.json()[field] == len(expected), name


@pytest.mark.parametrize(
    "facts",
    [FACTS_OF_ANY_SIZE, FACTS_WITH_LINES, FACTS_WITH_MOSAICS],
    ids=["any size", "lines", "mosaics"],
)
async def test_rows_and_pixels_of_pictures_follow_from_their_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: PictureFacts
) -> None:
    server = picture_server(tmp_path, facts=facts)
    pictures = [noise() for _ in range(random.randint(1, 3))]
    body = ROUTES["chat"].body([encoded(picture) for picture in pictures])
    assert (await server.chat(**body, max_tokens=1)).status_code == 200
    prompt, states = server.last_request.prompt_token_ids, server.last_request.states
    expected = []
    for picture in pictures:
        crops = [p for p in facts.pieces(*picture.size) if isinstance(p, Crop)]
        cut = cut_crops(np.asarray(picture), crops, facts.resampling)
        expected += zip(crops, cut, strict=True)
    end = 0
    for part, (crop, pixels) in zip(states, expected, strict=True):
        assert part == replace(facts.black(crop, part.start), content=pixels.tobytes())
        assert part.size == pixels.shape[:2] and part.start >= end and facts.fits(part)
        end = part.end
        for first, _, number in part.stretches(0, end):
            assert set(prompt[first : first + number]) == {facts.placeholder_id}
    assert prompt.count(facts.placeholder_id) == sum(part.num_states for part in states)
    forbid_decoding(monkeypatch)
    answer = await server.post("/tokenize", **body)
    assert answer.json()["count"] == len(prompt)


async def test_pictures_that_are_too_long_are_refused(tmp_path: Path) -> None:
    server = picture_server(tmp_path, facts=FACTS_OF_ANY_SIZE)
    length = random.randint(1, 9)
    size = random.choice([(200 * length + 1, length), (length, 200 * length + 1)])
    answer = await server.chat(**ROUTES["chat"].body([encoded(noise()), encoded(noise(*size))]))
    refused(server, answer, f"image 2 has {size[0]}x{size[1]} pixels")
    assert not server.engine.requests


async def test_a_model_without_pictures_says_so(server: TextServer) -> None:
    for route in ROUTES.values():
        answer = await server.post(route.path, **route.body([encoded(noise())]))
        refused(server, answer, "org/tiny reads no images in messages; send text")
    assert not server.engine.requests


@pytest.mark.parametrize("template", [LIST_TEMPLATE, STRING_TEMPLATE], ids=["parts", "string"])
async def test_pictures_stay_in_their_places(tmp_path: Path, template: str) -> None:
    server = picture_server(tmp_path, template)
    picture = noise()
    image = {"type": "image_url", "image_url": {"url": data_url(encoded(picture))}}
    texts = [{"type": "text", "text": text} for text in ("one", "two")]
    messages = [
        {"role": "user", "content": [texts[0], image, texts[1]]},
        {"role": "assistant", "content": "seen"},
        {"role": "user", "content": [image]},
    ]
    assert (await server.chat(messages=messages, max_tokens=1)).status_code == 200
    space = "" if template == LIST_TEMPLATE else "\n"
    place = place_of(picture)
    assert server.last_request.prompt_token_ids == server.encode(
        f"<|s|>user\none{space}{place}{space}two<|e|>\n<|s|>assistant\nseen<|e|>\n"
        f"<|s|>user\n{place}<|e|>\n<|s|>assistant\n"
    )
    digests = [part.digest for part in server.last_request.states]
    assert digests[: len(digests) // 2] * 2 == digests


async def test_a_tool_may_answer_with_a_picture(seeing: TextServer) -> None:
    picture = noise()
    file = encoded(picture)
    call = {"id": "c", "name": "look", "input": {}}
    source = {"type": "base64", "media_type": "image/png", "data": file}
    result = [{"type": "text", "text": "here"}, {"type": "image", "source": source}]
    anthropic = {
        "max_tokens": 5,
        "messages": [
            {"role": "user", "content": "look"},
            {"role": "assistant", "content": [{"type": "tool_use", **call}]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "c", "content": result}],
            },
        ],
    }
    output = [
        {"type": "input_text", "text": "here"},
        {"type": "input_image", "image_url": data_url(file)},
    ]
    function = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    responses = {
        "input": [
            {"role": "user", "content": "look"},
            function,
            {"type": "function_call_output", "call_id": "c", "output": output},
        ]
    }
    for path, body in (("/v1/messages", anthropic), ("/v1/responses", responses)):
        answer_of(await seeing.post(path, **body))
        assert [part.content for part in seeing.last_request.states] == shown(picture)


FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "alpha": ("RGBA", "PNG", {}),
    "alpha in WebP": ("RGBA", "WEBP", {"lossless": True}),
    "grey": ("L", "PNG", {}),
    "grey and alpha": ("LA", "PNG", {}),
    "palette": ("P", "PNG", {}),
    "transparent palette": ("P", "PNG", {"transparency": 3}),
    "one bit": ("1", "PNG", {}),
    "CMYK": ("CMYK", "JPEG", {}),
    "JPEG": ("RGB", "JPEG", {}),
    "GIF": ("RGB", "GIF", {}),
    "transparent GIF": ("P", "GIF", {"transparency": 3}),
}


async def test_formats_are_read_as_transformers_reads_them(seeing: TextServer) -> None:
    for name, (mode, format, options) in FORMATS.items():
        await check_seen(seeing, encoded(noise(mode=mode), format, **options), name)
    for size in ((1, 1), (1, 3000), (3000, 1)):
        await check_seen(seeing, encoded(noise(*size)), str(size))


async def test_turned_pictures_are_upright(seeing: TextServer) -> None:
    for format in ("JPEG", "PNG", "WEBP"):
        for orientation in random.sample(range(1, 9), 3):
            exif = Image.Exif()
            exif[0x0112] = orientation
            picture = noise(random.randint(1, 9), random.randint(20, 40))
            await check_seen(seeing, encoded(picture, format, exif=exif), f"{format} {orientation}")


async def check_seen(server: TextServer, file: str, name: str) -> None:
    answer = await server.chat(**ROUTES["chat"].body([file]), max_tokens=1)
    assert answer.status_code == 200, (name, answer.text)
    read = Image.open(io.BytesIO(base64.b64decode(file)))
    assert [part.content for part in server.last_request.states] == shown(read), name


def _file(data: bytes) -> str:
    return base64.b64encode(data).decode()


FILES: dict[str, tuple[Any, str]] = {
    "broken base64": (lambda: "ab!c", "base64"),
    "no picture": (lambda: _file(b"hello, world"), "is not a picture"),
    "nothing": (lambda: "", "is empty"),
    "scans": (lambda: _file(jpeg_of_scans(20_000)), "20000 scans"),
    "a long line": (lambda: encoded(Image.new("1", (30_000, 1))), "30000x1 pixels"),
    "a claimed size": (lambda: _file(png_of_size(1 << 20, 1 << 20)), "scale it down"),
    "no pixels": (lambda: _file(png_of_size(9, 9)), "broken"),
    "truncated": (lambda: _file(truncated("PNG")), ""),
    "an animation": (lambda: _file(frames("GIF", 3)), "is animated"),
    "the beginning of a GIF": (lambda: _file(b"GIF89a"), "broken"),
    "a GIF with a size and nothing else": (lambda: _file(b"GIF89a" + b"\1" * 9), "broken"),
}


async def test_bad_files_are_refused(seeing: TextServer) -> None:
    for make, said in FILES.values():
        route = random.choice([*ROUTES.values()])
        answer = await seeing.post(route.path, **route.body([encoded(noise()), make()]))
        refused(seeing, answer, said)
        assert "image 2" in answer.text
    assert not seeing.engine.requests


def _part(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": url}


ONE = {"url": data_url(encoded(Image.new("RGB", (2, 2))))}
BODIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "a number as url": ("user", _part(7), "a string as its image_url.url"),
    "a number in an object": ("user", _part({"url": 7}), "a string as its image_url.url"),
    "no url": ("user", {"type": "image_url"}, "a string as its image_url.url"),
    "a foreign type": ("user", {"type": "image_pil", "image_pil": "x"}, "type image_url"),
    "audio": ("user", {"type": "input_audio", "input_audio": {}}, "reads audio"),
    "a file": ("user", {"type": "file", "file": {}}, "reads audio, video or files"),
    "from the assistant": ("assistant", _part(ONE), "roles user and tool"),
    "from the system": ("system", _part(ONE), "roles user and tool"),
    "a file of this machine": ("user", _part({"url": "file:///etc/passwd"}), "must be a data URL"),
    "a link": ("user", _part("https://a.example/x.png"), "--allowed-media-domains"),
    "a password": ("user", _part("http://u:p@a.example/x.png"), "--allowed-media-domains"),
    "text in base64": ("user", _part("data:text/html,<b>"), "data URL"),
}


async def test_bad_parts_are_refused(seeing: TextServer) -> None:
    for role, part, said in BODIES.values():
        messages = [{"role": role, "content": [part]}, {"role": "user", "content": "x"}]
        refused(seeing, await seeing.chat(messages=messages), said)
    assert not seeing.engine.requests


async def test_files_by_id_and_data_for_prompts_are_refused(seeing: TextServer) -> None:
    part = {"type": "input_image", "file_id": "file-1"}
    body: dict[str, Any] = {"input": [{"role": "user", "content": [part]}]}
    refused(seeing, await seeing.post("/v1/responses", **body), "file_id: is not supported")
    body = {"prompt": {"prompt_string": "<__media__>", "multimodal_data": ["x"]}}
    refused(seeing, await seeing.post("/completion", **body), "multimodal_data is not supported")


@pytest.mark.parametrize("text", [FACTS.marker, FACTS.placeholder])
async def test_texts_that_stand_for_pictures_are_refused(seeing: TextServer, text: str) -> None:
    with_picture = random.random() < 0.5
    pictures = [_part(ONE)] * with_picture
    user = {"role": "user", "content": [*pictures, {"type": "text", "text": "hi"}]}
    tool = {"type": "function", "function": {"name": "f", "description": f"a {text}"}}
    bodies: dict[str, dict[str, Any]] = {
        "user": {"messages": [user, {"role": "user", "content": f"a{text}b"}]},
        "system": {"messages": [{"role": "system", "content": text}, user]},
        "parts": {
            "messages": [
                {
                    "role": "user",
                    "content": [*pictures, {"type": "text", "text": f"{text} "}],
                }
            ]
        },
        "continuation": {
            "messages": [user, {"role": "assistant", "content": text}],
            "continue_final_message": True,
        },
        "tool": {"messages": [user], "tools": [tool]},
        "negative": {"messages": [user], "negative_prompt": text, "guidance_scale": 2.0},
    }
    for name, body in bodies.items():
        answer = await seeing.chat(**body)
        if name == "negative" and with_picture:
            refused(seeing, answer, "negative_prompt cannot be combined")
        else:
            refused(seeing, answer, f"contains the text {text}")
        if name != "negative":
            body["add_generation_prompt"] = name != "continuation"
            refused(seeing, await seeing.post("/tokenize", **body), f"contains the text {text}")
    for prompt in (f"a {FACTS.placeholder}", [4, FACTS.placeholder_id]):
        for path in ("/v1/completions", "/completion"):
            answer = await seeing.post(path, prompt=prompt, max_tokens=1)
            refused(seeing, answer, "placeholder for pictures")
    assert not seeing.engine.requests


async def test_bounds_hold_before_a_picture_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = picture_server(tmp_path, max_images_per_prompt=20)
    forbid_decoding(monkeypatch)
    file = encoded(noise(40, 40))
    chat = ROUTES["chat"].body
    refused(server, await server.chat(**chat([file] * 21)), "21 images; the limit is 20")
    refused(server, await server.chat(**chat([file] * 20)), "maximum context length is 256 tokens")
    answer = await server.chat(**chat([file] * 15), max_tokens=100)
    refused(server, answer, "maximum context length is 256 tokens")
    answer = await server.chat(**chat([file]), truncate_prompt_tokens=20)
    refused(server, answer, "truncate_prompt_tokens cannot be combined")
    answer = await server.chat(**chat([file]), prompt_logprobs=0)
    refused(server, answer, "prompt_logprobs cannot be combined")
    assert not server.engine.requests


async def test_whoever_leaves_while_a_picture_is_decoded_leaves_nothing(
    seeing: TextServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def read(*args: Any) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    monkeypatch.setattr(PictureProcesses, "read", read)
    state = seeing.state
    body = ROUTES["chat"].body([encoded(noise())])
    async with seeing.listening() as url, httpx.AsyncClient(base_url=url) as client:
        asked = client.post("/v1/chat/completions", json=body, timeout=60)
        task = asyncio.create_task(asked)
        await asyncio.wait_for(begun.wait(), 20)
        assert state.pictures.budget.num_taken > 0
        # Company is answered meanwhile.
        assert (await seeing.chat(max_tokens=1)).status_code == 200
        task.cancel()
        await asyncio.wait_for(ended.wait(), 20)
    await until(lambda: state.admission.num_in_flight() == 0)
    assert state.pictures.budget.num_taken == 0
    assert len(seeing.engine.requests) == 1


async def test_a_request_may_be_cancelled_while_a_picture_is_decoded(
    seeing: TextServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def read(*args: Any) -> None:
        begun.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(PictureProcesses, "read", read)
    state = seeing.state
    task = asyncio.create_task(seeing.chat(**ROUTES["chat"].body([encoded(noise())])))
    await asyncio.wait_for(begun.wait(), 20)
    [(_, run)] = state.live_requests.of(None)
    await run.cancel()
    assert (await task).status_code != 200
    assert state.admission.num_in_flight() == state.pictures.budget.num_taken == 0


async def test_pixels_are_not_kept(tmp_path: Path, logs: list[Any]) -> None:
    server = picture_server(tmp_path, log_prompts=True, log_level="debug")
    file = encoded(noise())
    server.engine.hold()
    task = asyncio.create_task(server.chat(**ROUTES["chat"].body([file]), max_tokens=1))
    await until(lambda: bool(server.engine.requests))
    [(_, run)] = server.state.live_requests.of(None)
    assert [one.request.states for one in run.runs] == [()]
    assert server.state.pictures.budget.num_taken == 0
    server.engine.release()
    assert (await task).status_code == 200
    assert file[:40] not in repr(logs)
    assert FACTS.marker in repr(logs)


async def test_a_conversation_keeps_its_pictures(seeing: TextServer) -> None:
    """A response that continues another one sees the same pictures, so its prefix is known."""
    picture = noise(8, 8)
    first = await seeing.post("/v1/responses", **ROUTES["responses"].body([encoded(picture)]))
    before = seeing.last_request
    answer = await seeing.post(
        "/v1/responses", input="and?", previous_response_id=first.json()["id"]
    )
    assert answer.status_code == 200, answer.text
    assert seeing.last_request.states == before.states
    items = await seeing.client.get(f"/v1/responses/{first.json()['id']}/input_items")
    [image, text] = items.json()["data"][0]["content"]
    assert (image["type"], text["text"]) == ("input_image", "what?")
    assert image["image_url"].startswith("data:image/png;base64,")


async def test_listings_say_what_a_model_takes(seeing: TextServer, server: TextServer) -> None:
    for one, sees in ((seeing, True), (server, False)):
        [card] = (await one.client.get("/v1/models")).json()["data"]
        assert card["input_modalities"] == ["text", "image"][: 1 + sees]
        shown = (await one.post("/api/show", model=card["id"])).json()
        assert ("vision" in shown["capabilities"]) is sees
        assert (await one.client.get("/props")).json()["modalities"]["vision"] is sees


async def test_a_drawn_picture_is_shown_to_another_model(tmp_path: Path) -> None:
    seeing = picture_server(tmp_path)
    server = ImageServer(*seeing.engine.models(), image_info())
    server.engine.reply = seeing.engine.reply
    answer = await server.generate(model="painter", response_format="url")
    [drawn] = answer.json()["data"]
    file = (await server.client.get(drawn["url"])).content
    for url in (drawn["url"], drawn["url"].removeprefix("http://test")):
        messages = [{"role": "user", "content": [_part({"url": url})]}]
        answer_of(
            await server.post(
                "/v1/chat/completions", model="org/tiny", messages=messages, max_tokens=1
            )
        )
        picture = Image.open(io.BytesIO(file))
        assert [part.content for part in server.engine.requests[-1].states] == shown(picture)
