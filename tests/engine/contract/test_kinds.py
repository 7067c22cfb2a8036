"""The table of kinds: what a row must be, and that a third one is served like the first two."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import msgspec
import pytest

from engine.contract.generate import GenerateRequest
from engine.contract.kinds import KINDS
from engine.contract.model_spec import ModelSpec
from engine.contract.operations import DRAW, GENERATE, OPERATIONS, operation_of
from engine.contract.rejection import rejection
from engine.contract.request import Stats
from engine.contract.sampling_params import SamplingParams
from engine.contract.settings import EngineConfig
from engine.contract.status import Phase
from engine.errors import (
    Failure,
    InternalError,
    InvalidParameter,
    ModelLoadError,
    RequestFailed,
)
from engine.weights.recognition import kind_of_checkpoint, with_fetched
from engine.weights.source import Checkpoint, resolve_source
from engine.worker import messages
from engine.worker.client import ProcessEngineClient, WorkerOptions
from tests.helpers.worker import echo_kind
from tests.helpers.worker.calls import collect, until
from tests.helpers.worker.echo_kind import (
    ECHO,
    ECHO_KIND,
    EchoEvent,
    EchoInfo,
    EchoRequest,
    EchoStats,
)

WORKER = (sys.executable, echo_kind.__file__)
TEXT_REQUEST = GenerateRequest(
    request_id="t", model="m", prompt_token_ids=[1], sampling=SamplingParams()
)


def ask(request_id, *texts):
    return EchoRequest(request_id=request_id, model="m", texts=list(texts))


@pytest.fixture
def echo_row(monkeypatch):
    monkeypatch.setitem(OPERATIONS, ECHO.name, ECHO)
    monkeypatch.setitem(KINDS, ECHO_KIND.name, ECHO_KIND)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/greeting.txt").write_text("hello")
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return tmp_path / "model"


def test_no_two_operations_share_a_type():
    types = [
        t for one in OPERATIONS.values() for t in (one.request, one.event, one.stats, one.info)
    ]
    assert len(set(types)) == len(types)


def test_each_kind_is_made_for_an_operation_of_its_own_and_names_what_exists():
    assert {kind.main for kind in KINDS.values()} == set(OPERATIONS.values())
    assert len(KINDS) == len(OPERATIONS)
    for kind in KINDS.values():
        for name in filter(None, (kind.loader, kind.planner)):
            module, _, function = name.partition(":")
            source = (Path(__file__).parents[3] / f"{module.replace('.', '/')}.py").read_text()
            arguments = source.partition(f"def {function}(")[2].partition(")")[0]
            assert f"intent: {kind.settings.__name__}," in arguments


def test_an_operation_is_told_by_type():
    assert operation_of(TEXT_REQUEST) is GENERATE
    assert operation_of(DRAW.stats()) is DRAW
    with pytest.raises(InternalError, match="Stats belongs to no operation"):
        operation_of(Stats())


def test_a_kind_that_recognises_a_checkpoint_comes_before_those_that_take_the_rest(
    echo_row, folder, tmp_path
):
    assert kind_of_checkpoint(Checkpoint("folder", folder, "m")) is ECHO_KIND
    assert kind_of_checkpoint(Checkpoint("folder", tmp_path, "m")) is KINDS["text"]
    assert kind_of_checkpoint(Checkpoint("diffusers", folder, "m")) is KINDS["image"]


def test_models_that_a_configuration_names_are_fetched_for_the_kinds_that_use_them(tmp_path):
    config = EngineConfig(speculative_model="some/draft", num_speculative_tokens=4)

    def fetch(ref):
        assert ref == "some/draft"
        return Checkpoint("folder", tmp_path, "draft")

    found = with_fetched(config, KINDS["text"], fetch)
    assert found.speculative_model == str(tmp_path)
    assert with_fetched(config, KINDS["image"], fetch) == config
    assert with_fetched(EngineConfig(), KINDS["text"], fetch) == EngineConfig()


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        ("tandem-shapes", "is 'tandem-shapes', which is not a text model"),
        ("u2netp.onnx", "is 'u2netp', which is not a text model"),
        (
            "smollm3",
            "'smollm3' is neither a folder or file here nor a hub id.* built-in models: .*smollm2",
        ),
    ],
)
def test_the_setting_is_blamed_for_a_further_model(tmp_path, ref, reason):
    (tmp_path / "u2netp.onnx").write_bytes(b"\x08\x07" + bytes(20))
    fetch = partial(resolve_source, cache_dir=tmp_path, offline=True, on_progress=print)
    ref = str(tmp_path / ref) if ref.endswith(".onnx") else ref
    config = EngineConfig(speculative_model=ref, num_speculative_tokens=4)
    words = rf"^speculative_model (cannot be used: )?{reason}"
    with pytest.raises(ModelLoadError, match=words) as refused:
        with_fetched(config, KINDS["text"], fetch)
    assert refused.value.param == "speculative_model"
    assert str(tmp_path) not in refused.value.message


def test_reading_the_table_imports_no_engine():
    source = """
import sys
from functools import partial
import engine.contract.kinds, engine.worker.client, engine.worker.messages
ours = ("engine.llm", "engine.diffusion", "engine.embedding.", "engine.weights")
engines = ("torch", "diffusers", *ours)
loaded = [name for name in sys.modules if name.startswith(engines)]
assert not loaded, loaded
"""
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_failures_survive_the_border():
    error = InvalidParameter("too large", param="size")
    back = Failure.of(error).error()
    assert (type(back), back.message, back.param) == (InvalidParameter, "too large", "size")
    assert type(Failure("of another version", "what").error()) is InternalError
    [event] = rejection(TEXT_REQUEST, error)
    sent = messages.decode_from_worker(messages.encode(messages.Step.of([event], GENERATE.stats())))
    assert sent.read() == ([event], GENERATE.stats())


@pytest.mark.parametrize(
    ("operation", "variant"),
    [("embed", ""), ("draw", "edit"), ("draw", "of another version"), ("of another version", "")],
)
def test_a_body_for_another_operation_cannot_be_read(operation, variant):
    sent = messages.Submit(operation, messages.Submit.of(TEXT_REQUEST).body, variant)
    arrived = messages.decode_to_worker(messages.encode(sent))
    with pytest.raises((msgspec.ValidationError, KeyError)):
        arrived.read()
    assert arrived.request_id() == "t"


async def test_a_third_kind_is_a_row(echo_row, folder, tmp_path):
    """Loaded, listed, stepped, reported, refused: by code that has not heard of it."""
    options = WorkerOptions(config=EngineConfig(), cache_dir=tmp_path / "cache", command=WORKER)
    client = ProcessEngineClient([ModelSpec.parse(f"m={folder}")], options)
    reports = []
    client.steps.add(ECHO, lambda model, stats, worker: reports.append((model, stats)))
    client.steps.add(GENERATE, lambda model, stats, worker: reports.append("of another operation"))
    await client.start()
    try:
        await ready(client)
        [info] = client.infos(ECHO)
        assert (type(info), info.greeting) == (EchoInfo, "hello")
        assert client.infos(GENERATE) == []
        assert client.statuses()[0].kind == "echo"

        streams = [client.submit(ask(name, name, name)) for name in ("a", "b")]
        for stream, name in zip(streams, ("A", "B"), strict=True):
            events = await collect(stream)
            wanted = [(EchoEvent, 0, name), (EchoEvent, 1, name)]
            assert [(type(e), e.index, e.text) for e in events] == wanted
        model, stats = reports[-1]
        assert (model, type(stats), stats.num_chars) == ("m", EchoStats, 4)
        assert stats.num_threads >= 1 and stats.publish_time_s >= 0
        assert client.stats("m") == stats

        with pytest.raises(InvalidParameter, match="model 'm' makes echoes"):
            client.submit(TEXT_REQUEST)
        [refused] = await collect(client.submit(ask("empty", "")))
        assert (refused.failure.code, refused.failure.param) == ("invalid_value", "texts")
        ends = await collect(client.submit(ask("broken", "fail", "too")))
        wanted = [(0, "", "error"), (1, "TOO", "stop")]
        assert [(e.index, e.text, e.finish_reason) for e in ends] == wanted
        with pytest.raises(RequestFailed, match="under reference"):
            await collect(client.submit(ask("unreadable", 5)))
        [event] = await collect(client.submit(ask("after", "fine")))
        assert event.text == "FINE"

        assert "of another operation" not in reports
    finally:
        await client.stop(0)


async def ready(client):
    await until(lambda: client.statuses()[0].phase in (Phase.READY, Phase.FAILED), 60)
    assert client.statuses()[0].phase is Phase.READY, client.statuses()
