"""A worker's loop over a scripted engine: one request's faults stay its own."""

import contextlib
import gc
from types import SimpleNamespace

import msgspec
import pytest
import zmq
from structlog.testing import capture_logs

from engine.contract.adapter_orders import AdapterOrder, AdapterReport
from engine.contract.generate import EngineStats, TokenEvent
from engine.contract.request import FinishReason
from engine.contract.settings import EngineConfig
from engine.errors import Failure, InsufficientMemory, QueueFull
from engine.runtime.fault import answer_for, is_out_of_memory, names_device
from engine.runtime.threads import ComputeThreads
from engine.worker import loop, messages
from engine.worker.loop import Link, Loop
from tests.helpers.worker import calls


def request(request_id, n=1):
    return calls.request([1], request_id, n=n)


LAST = "no more messages"


class Engine:
    """Answers all requests in one step, with the tokens of their prompts, once the last message has
    come."""

    def __init__(self):
        self.requests = {}
        self.is_complete = False
        self.aborted = []
        self.on_step = None

    def add(self, request):
        if request.request_id == "full":
            raise QueueFull("too many")
        if request.request_id == "broken":
            raise ZeroDivisionError
        self.requests[request.request_id] = request

    def abort(self, request_id, index=None):
        if request_id == LAST:
            self.is_complete = True
        else:
            self.aborted.append(request_id)

    def has_work(self):
        return self.is_complete and bool(self.requests)

    def step(self):
        events = [
            TokenEvent(
                request_id=key,
                token_ids=[object()] if key == "unwritable" else r.prompt_token_ids,
                finish_reason=FinishReason.STOP,
            )
            for key, r in self.requests.items()
        ]
        self.requests.clear()
        self.on_step()
        return events, self.stats()

    def stats(self):
        return EngineStats()

    def shutdown(self):
        pass


@pytest.fixture
def server(tmp_path):
    """The server's end of a worker's socket; `server.address` is the worker's."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as server:
        server.linger = 0
        address = f"ipc://{tmp_path}/worker.sock"
        server.bind(address)
        yield SimpleNamespace(socket=server, address=address)


def received(server, wait_ms=500):
    found = []
    while server.socket.poll(wait_ms):
        found.append(messages.decode_from_worker(server.socket.recv()))
    return found


@pytest.fixture
def serve(server):
    """`serve(*frames)`: what the worker answers to these messages."""
    engine = Engine()
    threads = ComputeThreads(3, None, lambda threads: None)

    def serve(*frames, **more):
        link = Link(server.address)
        engine.on_step = lambda: server.socket.send(messages.encode(messages.Shutdown()))
        for frame in (*frames, messages.Abort(LAST)):
            server.socket.send(frame if isinstance(frame, bytes) else messages.encode(frame))
        with contextlib.closing(link), capture_logs() as logs:
            Loop(engine, link, threads, **more).run()
        return received(server), logs

    serve.engine = engine
    return serve


def test_an_engine_forgets_what_is_cached_before_later_requests(serve):
    done = []
    serve.engine.add = lambda request: done.append(request.request_id)
    serve.engine.reset_prefix_cache = lambda: done.append("reset")
    serve.engine.has_work = lambda: serve.engine.is_complete and bool(done)
    reset = messages.ResetPrefixCache()
    serve(messages.Submit.of(request("a")), reset, messages.Submit.of(request("b")))
    assert done == ["a", "reset", "b"]


def test_cache_events_are_published_after_steps_and_resets(serve):
    published, engine = [], serve.engine
    engine.reset_prefix_cache = lambda: published.append("reset")
    step = engine.step

    def noted_step():
        published.append("step")
        return step()

    engine.step = noted_step
    kv_events = SimpleNamespace(publish=lambda: published.append("events"))
    frames = messages.ResetPrefixCache(), messages.Submit.of(request("a"))
    answers, _ = serve(*frames, kv_events=kv_events)
    assert published[:2] == ["reset", "events"] and published[-2:] == ["step", "events"]
    assert [e.request_id for e in events_of(answers)] == ["a"]


def test_steps_are_profiled_between_two_of_them(serve):
    done = []
    profiler = SimpleNamespace(
        switch=lambda *, on: done.append(on),
        run=lambda step: (done.append("run"), step())[1],
        note_step=lambda: done.append("note"),
    )
    frames = [messages.Profile(True), messages.Submit.of(request("a"))]
    answers, _ = serve(*frames, profiler=profiler)
    assert done == [True, "run", "note"] and len(events_of(answers)) == 1
    answers, logs = serve(*frames)
    assert len(events_of(answers)) == 1 and logs == [], "without a profiler nothing happens"


def test_an_engine_without_work_prepares_until_it_has_nothing_to_prepare(serve, monkeypatch):
    monkeypatch.setattr(loop, "_IDLE_S", 0.0)
    engine, left = serve.engine, [False, True, True]

    def use_idle_time():
        if len(left) == 1:
            engine.on_step()  # the server ends the loop
        return left.pop()

    engine.use_idle_time = use_idle_time
    serve()
    assert not left


def test_an_engine_prepares_only_after_a_while_without_messages(serve, monkeypatch):
    monkeypatch.setattr(loop, "_IDLE_S", 60.0)
    serve.engine.use_idle_time = None  # a call would fail
    answers, _ = serve(messages.Submit.of(request("a")))
    assert [e.request_id for e in events_of(answers)] == ["a"]


def of_type(kind, answers):
    return [answer for answer in answers if isinstance(answer, kind)]


def events_of(answers):
    return [event for step in of_type(messages.Step, answers) for event in step.read()[0]]


def check_logged(logs, message, request_id):
    [line] = [entry for entry in logs if entry["log_level"] == "error"]
    assert line["request_id"] == request_id
    assert message.endswith(f"under reference {line['reference']}")


def test_a_request_that_the_engine_stumbles_over_ends_with_an_error(serve):
    submits = [messages.Submit.of(request(name, n=2)) for name in ("a", "broken", "full", "b")]
    answers, logs = serve(*submits)
    errors = [(e.request_id, e.index, e.failure.code) for e in events_of(answers) if e.failure]
    assert errors == [
        ("broken", 0, "request_failed"),
        ("broken", 1, "request_failed"),
        ("full", 0, "queue_full"),
        ("full", 1, "queue_full"),
    ]
    check_logged(logs, events_of(answers)[0].failure.message, "broken")
    assert [e.request_id for e in events_of(answers) if e.finish_reason == "stop"] == ["a", "b"]


def test_an_event_that_cannot_be_written_ends_its_request_alone(serve):
    names = ("a", "unwritable", "b")
    answers, logs = serve(*(messages.Submit.of(request(name)) for name in names))
    assert [e.request_id for e in events_of(answers)] == ["a", "b"]
    [refusal] = of_type(messages.Refused, answers)
    assert (refusal.request_id, refusal.failure.code) == ("unwritable", "request_failed")
    check_logged(logs, refusal.failure.message, "unwritable")
    assert serve.engine.aborted == ["unwritable"]


def test_a_request_that_cannot_be_read_ends_alone(serve):
    body = msgspec.to_builtins(request("bad"))
    body["prompt_token_ids"] = ["no number"]
    bad = messages.Submit("text", body)
    answers, logs = serve(messages.Submit.of(request("a")), bad, messages.Submit.of(request("b")))
    assert [e.request_id for e in events_of(answers)] == ["a", "b"]
    [refusal] = of_type(messages.Refused, answers)
    assert (refusal.request_id, refusal.failure.code) == ("bad", "request_failed")
    check_logged(logs, refusal.failure.message, "bad")


def test_orders_about_adapters_are_answered(serve):
    report = AdapterReport(num_layers=2, ranks=(4,))
    orders = (
        messages.LoadAdapter(7, AdapterOrder(name="poet", folder="/x", replaces=True)),
        messages.UnloadAdapter(8, "judge"),
    )
    answers, _ = serve(*orders, messages.Submit.of(request("a")))
    changes = of_type(messages.AdapterChanged, answers)
    assert [(c.id, c.report, c.failure.code) for c in changes] == [
        (7, None, "unsupported_feature"),
        (8, None, "unsupported_feature"),
    ]
    seen = []
    serve.engine.load_adapter = lambda order, answer: seen.append(order) or answer(report)
    serve.engine.unload_adapter = lambda name, answer: seen.append(name) or answer(None)
    answers, _ = serve(*orders, messages.Submit.of(request("b")))
    changes = of_type(messages.AdapterChanged, answers)
    assert changes == [messages.AdapterChanged(7, report), messages.AdapterChanged(8)]
    assert seen == [orders[0].order, "judge"]


def test_bytes_that_are_no_message_end_the_worker(serve):
    with pytest.raises(msgspec.DecodeError):
        serve(b"\xc1")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("cudaErrorIllegalAddress"),
        RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        type("AcceleratorError", (RuntimeError,), {})("unknown"),
    ],
)
def test_errors_of_the_device_are_known_by_type_and_text(error):
    assert names_device(error) and not is_out_of_memory(error)
    with pytest.raises(type(error)):
        answer_for(error, "r")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2"),
    ],
)
def test_a_lack_of_memory_is_no_broken_device(error):
    assert is_out_of_memory(error) and not names_device(error)
    with capture_logs():
        assert answer_for(error, "r").code == "over_capacity"


def test_what_the_request_is_to_blame_for_is_answered_as_it_is():
    with capture_logs() as logs:
        error = QueueFull("too many")
        assert answer_for(error, "r") is error
    assert logs == []


def test_each_report_says_how_many_threads_compute(serve):
    answers, _ = serve(messages.Submit.of(request("a")))
    assert [answer.read()[1].num_threads for answer in answers] == [3]


def answering(server, *answers):
    """A link whose server has sent these."""
    link = Link(server.address)
    for answer in answers:
        server.socket.send(messages.encode(answer))
    return contextlib.closing(link)


def test_memory_is_asked_for_in_the_midst_of_other_messages(server):
    submit = messages.Submit.of(request("a"))
    between = (submit, messages.Granted(7, 1), messages.Abort("a"))
    later = (messages.Granted(0, 50), messages.Throttle(0.5), messages.Granted(1, 20))
    with answering(server, *between, *later) as link:
        assert link.reserve("cpu", "weights", 10, 100) == 50
        grant = link.borrow("cuda", "adapter", 30, 100)
        assert (grant.id, grant.free_bytes) == (1, 20)
        link.give_back(grant)
        kept = []
        while link.has_message():
            kept.append(link.receive())
        assert kept.pop(0).read() == request("a")
        assert kept == [*between[1:], messages.Throttle(0.5)]
        assert received(server, 200) == [
            messages.Reserve(0, "cpu", "weights", 10, 100),
            messages.Reserve(1, "cuda", "adapter", 30, 100),
            messages.Release(1),
        ]


def test_memory_that_is_refused_keeps_what_came_before(server):
    denied = messages.Denied(0, Failure.of(InsufficientMemory("a holds it all")))
    with answering(server, messages.Abort("a"), denied) as link:
        with pytest.raises(InsufficientMemory, match="a holds it all"):
            link.borrow("cpu", "adapter", 10, 100)
        assert link.receive() == messages.Abort("a")


def test_garbage_is_looked_for_once_the_model_is_loaded(monkeypatch):
    seen = []

    def note(*_):
        seen.append(gc.isenabled())
        return SimpleNamespace(run=lambda: None, shutdown=lambda: None), None

    monkeypatch.setattr(loop, "load", note)
    monkeypatch.setattr(loop, "Loop", lambda *arguments: note(*arguments)[0])
    for name in ("send_pulses", "_threads"):
        monkeypatch.setattr(loop, name, lambda *_: None)
    link = SimpleNamespace(report=seen.append, send=seen.append, close=lambda: None)
    monkeypatch.setattr(loop, "Link", lambda _: link)
    monkeypatch.setattr(loop.messages.Ready, "of", lambda _: "ready")
    gc.disable()
    try:
        spec = SimpleNamespace(pulse_fd=0, address="", config=EngineConfig())
        assert loop.serve(spec) == 0
        assert seen[1:] == [False, "ready", True]
    finally:
        gc.enable()
        gc.unfreeze()
