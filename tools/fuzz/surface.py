"""The HTTP surface of a server that runs: requests made up from its OpenAPI document, and changed
requests of clients of all dialects (`requests.json`), some of which leave before their answer."""

import contextlib
import json
import random
import re
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from loadtest.processes import ProcessStat
from tools.endurance.judge import growths
from tools.endurance.order import Names, data_url
from tools.endurance.sample import WORK, Sample, look, sums_over_models
from tools.endurance.served import Material, Server
from tools.fuzz.findings import Findings
from tools.fuzz.mutations import changed_bytes, changed_json

_TIMEOUT_S = 600.0
"""Far longer than any request takes: this program and the server may be paused meanwhile."""
_NUM_CHANGED = 200
_NUM_MADE = 4
"""Requests of one round: changed ones, and for each operation of the document."""
_LEAVING = 0.15
"""Share of the changed requests whose client leaves."""
_MOST_WAIT_S = 0.3
"""A client that leaves waits up to this long before."""
_CPU_S = 3.0
"""Processor time of the server's own process for one request. Others' requests wait meanwhile."""
_NUM_LOOKS = 1000
"""How often to look, 50 ms apart, for the end of what nobody waits for any more."""
_RESTARTS = re.compile("engine_restarts_total")
_ENDLESS = "GET /models/sse"
_FAULTS = (b'"internal_error"', b'"request_failed"', b'"engine_dead"')
"""Codes of faults, which may also come within a stream."""
_IMAGE_MODELS = ("tandem-shapes", "realesr-animevideov3", "u2netp")
_OPTIONS = ("--max-model-len", "128", "--max-image-megapixel-steps", "1", "--log-format", "json")


def material(folder: Path) -> Material:
    """A tiny text model and the built-in models for images, with limits that keep requests short.

    All are there from the start: a model that starts within the run would look like growth.
    """
    from tools.tiny_models import TINY_MODELS

    TINY_MODELS["llama"].save(folder / "tiny", seed=1)
    models = ("tiny=$FOLDER/tiny", *_IMAGE_MODELS)
    options = (*(option for model in models for option in ("--model", model)), *_OPTIONS)
    return Material(folder, Names("tiny", _IMAGE_MODELS[0], "", "", ""), options)


class Surface:
    """The requests of one run, and what must hold after each."""

    def __init__(self, server: Server, seed: int, findings: Findings) -> None:
        self._server = server
        self._seed = seed
        self._findings = findings
        self._session = requests.Session()
        self._session.trust_env = False
        self._restarts = self._num_restarts()
        self._samples: list[Sample] = []
        self._began = time.monotonic()
        self.statuses: Counter[str] = Counter()
        self.stopped = threading.Event()
        """Set from outside to end `run` after the request."""

    def run(self, seconds: float) -> None:
        """Send rounds of requests for a time, then look for growth."""
        every = orders()
        number = 0
        while not self.stopped.is_set() and (elapsed_s := time.monotonic() - self._began) < seconds:
            self._changed(every, f"{self._seed} changed {number}")
            self._made_up(f"{self._seed} made {number}")
            if self.stopped.is_set():
                break
            self._wake_all()
            self._wait_until_quiet(f"{self._seed} round {number}")
            self._samples.append(look(self._server.pid, elapsed_s, {}))
            if (num_restarts := self._num_restarts()) > self._restarts:
                self._restarts = num_restarts
                self._findings.add("a worker died", f"{self._seed} round {number}", "", {})
            number += 1
        for fit in growths(self._samples, 0.25 * seconds):
            if fit.is_too_much:
                self._findings.add(f"growth of {fit.name}", str(self._seed), self._growth(), {})

    def _growth(self) -> str:
        """All series, each at the beginning, in the middle and at the end."""
        chosen = [self._samples[at].values() for at in (0, len(self._samples) // 2, -1)]
        return "\n".join(
            f"{name}: {', '.join(f'{sample.get(name, 0):.0f}' for sample in chosen)}"
            for name in chosen[-1]
        )

    def _wake_all(self) -> None:
        """Requests have put models to sleep, which hold less memory then."""
        self._send(requests.Request("POST", f"{self._server.url}/wake_up"), "wake")

    def _wait_until_quiet(self, trial: str) -> None:
        """Nobody asks any more: no request may be left, and no block be held."""
        for _ in range(_NUM_LOOKS):
            if not (work := self._work()):
                return
            time.sleep(0.05)
        self._findings.add(f"{', '.join(sorted(work))} not zero", trial, repr(work), {})

    def _work(self) -> dict[str, float]:
        """The gauges of work that are not zero."""
        text = self._session.get(f"{self._server.url}/metrics").text
        return {name: value for name, value in sums_over_models(text, WORK).items() if value}

    def _changed(self, orders: list[dict[str, Any]], trial: str) -> None:
        rng = random.Random(trial)
        bodies = [order["body"] for order in orders]
        for _ in range(_NUM_CHANGED):
            if self.stopped.is_set():
                return
            order = rng.choice(orders)
            body = json.dumps(changed_json(order["body"], rng, bodies)).encode()
            if rng.random() < 0.15:
                body = changed_bytes(body, rng)
            url = f"{self._server.url}{order['path']}"
            headers = {"Content-Type": "application/json"}
            made = requests.Request("POST", url, headers, data=body)
            if rng.random() < _LEAVING:
                self._send_and_leave(made, rng.uniform(0.001, _MOST_WAIT_S))
            else:
                self._send(made, trial)

    def _made_up(self, trial: str) -> None:
        import hypothesis
        import schemathesis

        url = f"{self._server.url}/openapi.json"
        schema = schemathesis.openapi.from_url(url, timeout=_TIMEOUT_S)
        for result in schema.get_all_operations():
            operation: Any = result.ok()  # type: ignore[union-attr]
            if self.stopped.is_set():
                return
            if operation.label == _ENDLESS:
                continue

            @hypothesis.seed(f"{trial} {operation.label}")
            @hypothesis.settings(
                max_examples=_NUM_MADE,
                deadline=None,
                database=None,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(case=operation.as_strategy())
            def send(case: Any) -> None:
                fields = case.as_transport_kwargs(base_url=self._server.url)
                self._send(requests.Request(**fields), trial)

            send()

    def _send_and_leave(self, made: requests.Request, wait_s: float) -> None:
        """Close the connection, whether the answer has begun or not."""
        request = made.prepare()
        request.headers["Connection"] = "close"
        with contextlib.suppress(requests.ReadTimeout):
            self._session.send(request, timeout=(_TIMEOUT_S, wait_s), stream=True).close()
        self.statuses["left"] += 1

    def _send(self, made: requests.Request, trial: str) -> None:
        try:
            request = made.prepare()
        except ValueError:
            return  # no client can send this
        request.headers["Connection"] = "close"  # else one may be sent as the server closes
        cpu_s = self._server_cpu_s()
        try:
            response = self._session.send(request, timeout=_TIMEOUT_S)
        except requests.RequestException as error:
            self._found(type(error).__name__, request, trial)
            return
        self.statuses[str(response.status_code)] += 1
        if self._server_cpu_s() > cpu_s + _CPU_S:
            self._found("busy for long", request, trial, response.content)
        if response.status_code >= 500 or any(fault in response.content for fault in _FAULTS):
            self._found(f"HTTP {response.status_code}", request, trial, response.content)

    def _found(
        self, what: str, request: requests.PreparedRequest, trial: str, answer: bytes = b""
    ) -> None:
        path = str(request.path_url).partition("?")[0]
        body = request.body if isinstance(request.body, bytes) else str(request.body).encode()
        sent = f"{request.method} {request.path_url}\n{dict(request.headers)}"
        kind = f"{request.method} {path}: {what}"
        self._findings.add(kind, trial, sent, {"body": body, "answer": answer})

    def _server_cpu_s(self) -> float:
        """Processor time of the process in which all requests meet."""
        stat = ProcessStat.read(self._server.pid)
        return 0.0 if stat is None else stat.own_cpu_s

    def _num_restarts(self) -> float:
        """How often workers have died."""
        text = self._session.get(f"{self._server.url}/metrics").text
        return sum(sums_over_models(text, _RESTARTS).values())


def orders() -> list[dict[str, Any]]:
    picture = data_url(Image.linear_gradient("L").resize((48, 48)).convert("RGB"))
    text = Path(__file__).with_name("requests.json").read_text()
    found: list[dict[str, Any]] = json.loads(text.replace("PICTURE", picture))
    return found
