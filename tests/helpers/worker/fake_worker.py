"""A worker that needs no model: it speaks the real messages and generates what the tests ask for.

The first prompt token says what happens: 1 echoes the prompt's tokens back, 2 kills the process in
the middle of the request, 3 never answers, 4 answers slowly, 5 starts a long process and answers
with its id, 6 computes for ever, 7 computes for as many seconds as the next token says, 8 locks the
loop for ever, 9 borrows as many bytes as the next token says and answers with what is free, 10
gives them back. A request that is never answered keeps its adapter from going. An adapter from the
folder `broken` cannot be loaded, one from `slow` never ends to be. The model reference `broken`
fails to load; `slow` takes half a second; `mute` says nothing; `dies` kills itself while it loads;
`huge` asks for more memory than there is; `w300+200` asks for that much, in two steps; `once-FILE`
loads only if the file does not exist, and creates it.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from typing import Any

if __name__ == "__main__":
    # structlog would import it, which takes as long as a quarter of the start.
    sys.modules["rich"] = None  # type: ignore[assignment]

from engine.contract.adapter_orders import AdapterReport
from engine.contract.generate import EngineStats, ModelInfo, TokenEvent
from engine.contract.request import FinishReason
from engine.contract.status import Phase
from engine.errors import Failure, InsufficientMemory
from engine.processes.pulse import Pulse, send_pulses
from engine.worker import messages
from engine.worker.loop import Link, end_with_the_server, read_spec


def main() -> int:
    spec = read_spec()
    end_with_the_server(spec.address)
    send_pulses(Pulse(), spec.pulse_fd, period_s=0.05)
    if spec.ref == "mute":
        time.sleep(600)
    link = Link(spec.address)
    marked = spec.ref.partition("once-")[2]
    if spec.ref == "broken" or os.path.exists(marked):
        link.send(
            messages.Failed(
                Failure("corrupt_file", "the checkpoint is truncated", hint="looked for /somewhere")
            )
        )
        link.close()
        return 1
    if marked:
        open(marked, "x").close()
    link.send(messages.Found("/somewhere"))
    if spec.ref == "slow":
        link.report(Phase.LOADING, 0.5, "half way")
        time.sleep(0.5)
    if spec.ref == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        for size in sizes_of(spec.ref):
            link.reserve("cpu", "weights", size, 1000)
    except InsufficientMemory as error:
        link.send(messages.Failed(Failure.of(error)))
        link.close()
        return 1
    link.send(
        messages.Ready.of(
            ModelInfo(
                model=spec.model,
                path="",
                architecture="Fake",
                max_model_len=spec.config.max_model_len or 100,
                vocab_size=100,
                dtype="float32",
                created=0,
                num_kv_blocks=10,
                kv_block_size=16,
                adapters=tuple(spec.config.adapters),
            )
        )
    )
    aborted = 0
    while True:
        match link.receive():
            case messages.Shutdown():
                return 0
            case messages.Doze(most_bytes=most_bytes):
                # A file of one GiB, and of each process remain 100 bytes.
                does = most_bytes >= 1 << 30
                link.send(messages.Dozing(1 << 30, 100) if does else messages.Dozing())
            case messages.WakeUp():
                if os.path.exists(os.path.join(spec.cache_dir, "dies")):
                    os.kill(os.getpid(), signal.SIGKILL)
                link.send(messages.Awake())
            case messages.LoadAdapter(id=id, order=order):
                if order.folder == "broken":
                    failure = Failure("corrupt_file", "it is cut off")
                    link.send(messages.AdapterChanged(id, None, failure))
                elif order.folder != "slow":
                    report = AdapterReport(num_layers=3, ranks=(8,))
                    link.send(messages.AdapterChanged(id, report))
            case messages.UnloadAdapter(id=id, name=name):
                leaving.append((id, name))
                let_go(link)
            case messages.Abort(request_id=request_id):
                unanswered.pop(request_id, None)
                let_go(link)
                aborted += 1
                link.send(messages.Step.of([], EngineStats(num_steps=aborted)))
            case messages.Submit() as submit:
                request: Any = submit.read()
                kind = request.prompt_token_ids[0]
                if kind == 2:
                    link.send(messages.Step.of([event(request, [2])], EngineStats()))
                    os.kill(os.getpid(), signal.SIGKILL)
                if kind == 5:
                    child = subprocess.Popen(["sleep", "600"])
                    end = event(request, [child.pid], FinishReason.STOP)
                    link.send(messages.Step.of([end], EngineStats()))
                    continue
                if kind == 4:
                    time.sleep(0.3)
                if kind in (6, 7):
                    compute(request.prompt_token_ids[1] if kind == 7 else 1_000_000)
                if kind in (9, 10):
                    free = borrow(link, request) if kind == 9 else give_back(link)
                    end = event(request, [free], FinishReason.STOP)
                    link.send(messages.Step.of([end], EngineStats()))
                    continue
                if kind == 8:
                    lock = threading.Lock()
                    lock.acquire()
                    lock.acquire()
                if kind == 3:
                    unanswered[request.request_id] = request.adapter
                else:
                    echo(link, request)


def sizes_of(ref):
    """The bytes that a model asks for."""
    if re.fullmatch(r"w\d+(\+\d+)*", ref):
        return [int(size) for size in ref[1:].split("+")]
    return [1001 if ref == "huge" else 100]


GRANTS = []
unanswered = {}
"""The adapters of requests that are never answered, by request."""
leaving = []
"""The adapters that are being unloaded."""


def let_go(link):
    for id, name in list(leaving):
        if name not in unanswered.values():
            leaving.remove((id, name))
            link.send(messages.AdapterChanged(id))


def borrow(link, request):
    try:
        GRANTS.append(link.borrow("cpu", "adapter", request.prompt_token_ids[1], 1000))
    except InsufficientMemory:
        return 0
    return GRANTS[-1].free_bytes


def give_back(link):
    link.give_back(GRANTS.pop())
    return len(GRANTS)


def compute(seconds):
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        pass


def event(request, tokens, finish_reason=None, index=0):
    return TokenEvent(
        request_id=request.request_id, index=index, token_ids=tokens, finish_reason=finish_reason
    )


def echo(link, request):
    for token in request.prompt_token_ids:
        link.send(messages.Step.of([event(request, [token])], EngineStats(num_running=1)))
    ends = [event(request, [], FinishReason.STOP, index) for index in range(request.sampling.n)]
    link.send(messages.Step.of(ends, EngineStats()))


if __name__ == "__main__":
    sys.exit(main())
