import asyncio
import base64
import json
import struct
import time
from typing import Any

import pytest

from loadtest.drive import drive
from loadtest.image_client import ImageClient, ImageTarget
from loadtest.image_record import ImageRecord, summarise_images
from loadtest.image_workload import ImageSettings, StepRange, closed_images


def png(width: int, height: int, end: bytes = b"IEND\xaeB`\x82") -> bytes:
    head = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", width, height)
    return head + b"pixels" + end


def picture(data: bytes) -> bytes:
    return json.dumps({"data": [{"b64_json": base64.b64encode(data).decode()}]}).encode()


def answering(status: str, body: bytes) -> Any:
    async def answer(_: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    return answer


async def send_one(fake: Any) -> ImageRecord:
    client = ImageClient(ImageTarget(fake.url, "m"))
    settings = ImageSettings(64, StepRange(7, 7), 3.5)
    (planned,) = closed_images(settings, 1, 1, seed=3).requests
    record = client.new_record(planned)
    await client.send(client.encode(planned), record, time.perf_counter())
    return record


def test_models_take_turns() -> None:
    target = ImageTarget("http://h/v1", "m", models=("a", "b"))
    planned = closed_images(ImageSettings(64, StepRange(7, 7), 3.5), 1, 3, seed=3).requests
    assert [target.body(one)["model"] for one in planned] == ["a", "b", "a"]


async def test_a_picture_is_asked_for_and_looked_at(fake_openai: Any) -> None:
    data = png(64, 64)
    fake_openai.answer = answering("200 OK", picture(data))
    record = await send_one(fake_openai)
    assert (record.error, record.status, record.num_bytes) == (None, 200, len(data))
    assert record.end_s is not None and record.end_s > 0
    (seen,) = fake_openai.seen
    assert seen.path == "/v1/images/generations"
    assert isinstance(seen.body.pop("prompt"), str)
    assert isinstance(seen.body.pop("seed"), int)
    assert seen.body == {
        "model": "m",
        "n": 1,
        "size": "64x64",
        "num_inference_steps": 7,
        "guidance_scale": 3.5,
        "output_format": "png",
        "response_format": "b64_json",
    }


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        ("200 OK", picture(png(64, 32)), "the picture is 64x32, not 64x64"),
        ("200 OK", picture(png(64, 64, end=b"")), "not a whole PNG"),
        ("200 OK", picture(b"\xff\xd8JPEG"), "not a whole PNG"),
        ("200 OK", b'{"data": []}', "no picture in the answer"),
        ("200 OK", b'{"data": [{"b64_json": "?"}]}', "no picture in the answer"),
        ("200 OK", b'{"data": [{"url": "x"}]}', "no picture in the answer"),
        ("200 OK", b"<html>", "no picture in the answer: <html>"),
        ("400 No", b'{"error": {"message": "bad size"}}', "HTTP 400: bad size"),
        ("429 No", b"", "HTTP 429"),
    ],
)
async def test_what_is_no_picture(fake_openai: Any, status: str, body: bytes, problem: str) -> None:
    fake_openai.answer = answering(status, body)
    record = await send_one(fake_openai)
    assert record.error is not None
    assert problem in record.error


async def test_a_connection_that_ends_within_the_picture(fake_openai: Any) -> None:
    async def answer(_: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{")
        await writer.drain()
        writer.close()

    fake_openai.answer = answer
    record = await send_one(fake_openai)
    assert record.error == "connection closed within the answer"


async def test_a_run_of_pictures(fake_openai: Any) -> None:
    fake_openai.answer = answering("200 OK", picture(png(64, 64)))
    client = ImageClient(ImageTarget(fake_openai.url, "m"))
    workload = closed_images(ImageSettings(64, StepRange(10, 40)), 3, 10, seed=1)
    outcome = await drive(workload, client)
    assert [record.error for record in outcome.records] == [None] * 10
    assert fake_openai.max_in_flight <= 3
    rows = [record.to_row() for record in outcome.records]
    again = [ImageRecord.from_row(row) for row in json.loads(json.dumps(rows))]
    assert [record.to_row() for record in again] == rows
    summary = summarise_images(again, 2.0, 10)
    assert summary["images_s"] == 5.0
    steps = sum(request.steps for request in workload.requests)
    assert summary["megapixel_steps_s"] == pytest.approx(64 * 64 * steps / 1e6 / 2, abs=1e-4)


def test_failures_never_flatter_a_rate() -> None:
    records = [ImageRecord(0, 64, 10, end_s=1.0), ImageRecord(1, 64, 10, end_s=0.1, error="x")]
    summary = summarise_images(records, 2.0, 3)
    assert (summary["images_s"], summary["num_failed"], summary["errors"]) == (0.5, 1, {"x": 1})
    assert summary["latency_ms"]["max"] == 1000
    assert summarise_images([], 0.0, 0)["latency_ms"] is None
