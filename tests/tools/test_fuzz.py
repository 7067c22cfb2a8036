"""The fuzzer: trials repeat, what goes wrong is found and kept, and unharmed requests are right."""

import json
import os
import random
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest

from engine.errors import CorruptFile
from server.app import create_app
from server.settings import Settings
from tests.helpers.plain_python import printed
from tests.helpers.server.fake_engine import FakeEngine
from tools.fuzz import surface
from tools.fuzz.findings import Findings
from tools.fuzz.mutations import changed_bytes, changed_json
from tools.fuzz.readers import READERS, change_file
from tools.fuzz.trials import outcome_of

DOCUMENT = {"a": [1, {"b": "text"}, None], "c": 2.5, "d": {"e": [True]}}
CHEAP = ("text adapter", "image adapter", "archive", "gguf", "png")


def test_a_seed_repeats_its_changes():
    seed, data = random.random(), random.randbytes(300)
    twice = [
        (changed_bytes(data, rng), json.dumps(changed_json(DOCUMENT, rng)))
        for rng in (random.Random(seed), random.Random(seed))
    ]
    assert twice[0] == twice[1]


def test_changes_are_many_and_leave_the_original_alone():
    before, data = json.dumps(DOCUMENT), random.randbytes(300)
    rng = random.Random()
    documents = {json.dumps(changed_json(DOCUMENT, rng)) for _ in range(200)}
    files = {changed_bytes(data, rng) for _ in range(200)}
    assert json.dumps(DOCUMENT) == before
    assert len(documents) > 100 and len(files) > 100
    assert changed_bytes(b"", rng)


@pytest.mark.parametrize("name", CHEAP)
def test_whole_files_are_read_and_changed_ones_refused(name, tmp_path):
    reader = READERS[name]
    path = reader.make(tmp_path)
    assert outcome_of(reader.read, path).name == "read"
    whole = {file: file.read_bytes() for file in tmp_path.iterdir()}
    outcomes = set()
    for _ in range(30):
        change_file(random.choice([*whole]), random.Random())
        outcomes.add(outcome_of(reader.read, path).name)
        for file, data in whole.items():
            file.write_bytes(data)
    assert "refused" in outcomes
    assert outcomes <= {"read", "refused"}


def test_only_an_error_of_ours_is_a_refusal():
    def fail(path: Path) -> None:
        raise KeyError(path.name)

    def refuse(path: Path) -> None:
        raise CorruptFile(path.name)

    outcome = outcome_of(fail, Path("a"))
    assert outcome.is_finding and outcome.name == "KeyError in test_fuzz.py:fail"
    assert "KeyError: 'a'" in outcome.detail
    assert not outcome_of(refuse, Path("a")).is_finding


def test_the_first_finding_of_a_kind_is_kept_with_its_bytes(tmp_path):
    said = []
    findings = Findings(tmp_path, said.append)
    for seed in ("1 gguf 7", "1 gguf 9"):
        findings.add("gguf: KeyError", seed, "a traceback", {"a.gguf": seed.encode()})
    assert findings.kinds == {"gguf: KeyError": 2}
    assert (tmp_path / "01" / "a.gguf").read_bytes() == b"1 gguf 7"
    assert "seed 1 gguf 7" in (tmp_path / "01" / "finding.txt").read_text()
    assert len(said) == 1


def test_every_request_has_a_route():
    paths = create_app(Settings(), FakeEngine()).openapi()["paths"]
    orders = surface.orders()
    assert {order["path"] for order in orders} <= {p for p, way in paths.items() if "post" in way}
    dialects = {"/v1/messages", "/api/chat", "/sdapi/v1/txt2img", "/completion", "/v1/responses"}
    assert dialects <= {order["path"] for order in orders}


def test_all_that_strange_weights_need_is_imported_with_whole_ones(tmp_path):
    assert printed("-c", STRANGE_WEIGHTS, str(tmp_path)) == "set()\n"


STRANGE_WEIGHTS = """\
import sys
from pathlib import Path
import torch
from engine.errors import UnsupportedArchitecture
from tools.fuzz.readers import READERS
reader = READERS["archive"]
path = reader.make(Path(sys.argv[1]))
reader.read(path)
before = set(sys.modules)
torch.save({"params": {"strange": torch.zeros(3)}}, path)
try:
    reader.read(path)
except UnsupportedArchitecture:
    print({name for name in set(sys.modules) - before if name.startswith("spandrel")} or "set()")
"""


@pytest.mark.parametrize(("num_busy", "is_found"), [(2, False), (99, True)])
def test_what_remains_after_a_round_is_found(num_busy, is_found, tmp_path, monkeypatch):
    pages = iter([1.0, *[1.0] * num_busy])  # one is read at the start

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = f'tandem_kv_cache_usage_ratio{{model_name="a"}} {next(pages, 0.0)}\n'
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(surface, "_NUM_LOOKS", 5)
    findings = Findings(tmp_path, lambda line: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        place = SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", pid=os.getpid())
        surface.Surface(place, 1, findings)._wait_until_quiet("1 round 0")
        server.shutdown()
    assert findings.kinds == ({"kv_cache_usage_ratio not zero": 1} if is_found else {})
