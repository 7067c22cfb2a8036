"""`tandem perplexity` on a server, what it prints, and what it says when it cannot measure."""

import json
import math
import random

import httpx
import pytest
from typer.testing import CliRunner

from server.cli import app
from server.terminal import own_process
from server.terminal import perplexity as measuring

TEXT = "".join(random.choices("ab 7é{\n", k=99)) + "x"
SIZE = 8
START = 300


class Server:
    """Tokens are bytes; `bad` replaces answers by path."""

    def __init__(self):
        self.bad = {}
        self.scored = []
        self.spells = True

    def handle(self, request):
        path = request.url.path
        if path in self.bad:
            answer = self.bad[path]
            if isinstance(answer, Exception):
                raise answer
            return answer
        if path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "first"}]})
        body = json.loads(request.content)
        assert body["model"] == "first"
        if path == "/tokenize":
            return httpx.Response(200, json=self.tokenized(body))
        assert path == "/v1/completions"
        assert {name: body[name] for name in ("echo", "logprobs", "max_tokens")} == {
            "echo": True,
            "logprobs": 0,
            "max_tokens": 0,
        }
        self.scored.append(body["prompt"])
        scores = [None, *(-surprise(token) for token in body["prompt"][1:])]
        choice = {"text": "", "logprobs": {"token_logprobs": scores}}
        return httpx.Response(200, json={"choices": [choice]})

    def tokenized(self, body):
        tokens = [START] * body["add_special_tokens"] + list(body["prompt"].encode())
        spelled = [f"<0x{token:02X}>" for token in tokens] if self.spells else None
        return {"tokens": tokens, "token_strs": spelled}


def surprise(token):
    return 0.5 + token % 7


@pytest.fixture
def server(monkeypatch):
    server = Server()
    transport = httpx.MockTransport(server.handle)
    monkeypatch.setattr(
        measuring,
        "open_client",
        lambda settings: httpx.Client(transport=transport, base_url=settings.url),
    )
    return server


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def invoke(*args):
    result = CliRunner().invoke(app, ["perplexity", *map(str, args)], env={"COLUMNS": "120"})
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


def test_a_servers_scores_of_prompts_are_summed(server, text):
    code, output, _ = invoke("--url", "http://s", "--text", text, "--context", SIZE, "--json")
    assert code == 0
    report = json.loads(output)
    tokens = [START, *TEXT.encode()]
    windows = [tokens[at : at + SIZE] for at in range(0, len(tokens) - SIZE + 1, SIZE)]
    assert server.scored == [[START, *window[1:]] for window in windows]
    surprises = [surprise(token) for window in windows for token in window[SIZE // 2 + 1 :]]
    assert report["perplexity"] == pytest.approx(math.exp(sum(surprises) / len(surprises)))
    assert report["bits_per_byte"] == pytest.approx(sum(surprises) / len(surprises) / math.log(2))
    assert (report["model"], report["against"], report["weight_bytes"]) == ("first", None, None)
    assert (report["passages"], report["tokens"]) == (len(windows), len(surprises))
    assert sum(one["tokens"] for one in report["classes"].values()) == report["tokens"]


def test_a_server_that_does_not_spell_its_tokens(server, text):
    server.spells = False
    arguments = ("--url", "http://s", "--text", text, "--context", SIZE, "--passages", 2)
    code, output, _ = invoke(*arguments, "--json")
    assert code == 0
    report = json.loads(output)
    assert (report["passages"], report["bits_per_byte"], report["classes"]) == (2, None, {})
    code, output, _ = invoke(*arguments)
    assert code == 0
    assert f"{report['perplexity']:.4f}" in output


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        ("/v1/models", httpx.ConnectError("refused"), "no server answers at http://s"),
        ("/v1/models", httpx.Response(200, json={"data": []}), "no text model"),
        ("/tokenize", httpx.Response(404, json={"detail": "Not Found"}), "404"),
        ("/tokenize", httpx.Response(200, json={"count": 3}), "no token ids"),
        ("/tokenize", httpx.Response(200, text="<html>"), "not answer like a Tandem server"),
        (
            "/v1/completions",
            httpx.Response(400, json={"error": {"message": "echo is not supported"}}),
            "echo is not supported",
        ),
        (
            "/v1/completions",
            httpx.Response(200, json={"choices": [{"text": "", "logprobs": None}]}),
            "no log-probabilities of a prompt",
        ),
        (
            "/v1/completions",
            httpx.Response(200, json={"choices": [{"logprobs": {"token_logprobs": [None, -1.0]}}]}),
            "no log-probabilities of a prompt",
        ),
        ("/v1/completions", httpx.ReadTimeout("slow"), "broke"),
    ],
)
def test_a_server_that_does_not_play_along(server, text, path, answer, words):
    server.bad[path] = answer
    code, output, error = invoke("--url", "http://s", "--text", text, "--context", SIZE)
    assert (code, output) == (2, "")
    assert words in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--model"),
        (("--url", "http://s", "--against", "m"), "--against"),
        (("--url", "http://s", "--dtype", "float32"), "engine options"),
        (("--url", "nonsense"), "--url"),
        (("--model", "m", "--max-kl", "0.1"), "--max-kl needs --against"),
        (("--model", "m", "--dtype", "int3"), "--dtype"),
        (("--model", "m", "--num-threads", "0"), "--num-threads"),
        (("--model", "=m"), "REF"),
        (("--model", "m", "--against", "=m"), "REF"),
        (("--model", "m", "--context", "3"), "--context"),
        (("--model", "m", "--passages", "0"), "--passages"),
    ],
)
def test_options_that_do_not_go_together(text, arguments, words):
    code, output, error = invoke("--text", text, *arguments)
    assert (code, output) == (2, "")
    assert words in error


@pytest.mark.parametrize("given", [("--model", "m"), ("--url", "http://s")])
@pytest.mark.parametrize(("content", "words"), [("", "empty"), (None, "cannot be read")])
def test_a_text_that_is_none(server, tmp_path, monkeypatch, given, content, words):
    monkeypatch.setattr(own_process, "_result", None)  # nothing is started
    path = tmp_path / "text"
    if content is not None:
        path.write_text(content)
    code, _, error = invoke("--text", path, *given)
    assert code == 2
    assert words in error


def test_a_text_shorter_than_a_passage(server, text):
    code, _, error = invoke("--text", text, "--url", "http://s")
    assert code == 2
    assert "at least one passage of 512" in error


REPORT = {
    "context": 512,
    "passages": 3,
    "weight_bytes": 5 << 20,
    "tokens_per_s": 99.4,
    "tokens": 765,
    "perplexity": 20.5,
    "perplexity_error": 0.25,
    "bits_per_byte": 1.25,
    "original_perplexity": 19.5,
    "kl_divergence": 0.0625,
    "kl_divergence_error": 0.01,
    "top1_agreement": 0.875,
    "classes": {
        "digits": {
            "tokens": 70,
            "perplexity": 9.5,
            "original_perplexity": 8.5,
            "kl_divergence": 0.5,
            "top1_agreement": 0.5,
        }
    },
}


def test_a_model_is_measured_by_a_process_of_its_own(child, text):
    child["lines"] = [
        {"phase": "loading", "progress": 0.5, "detail": None},
        {"passage": 1, "of": 3, "perplexity": 21.0},
        {"report": REPORT},
    ]
    arguments = ("--model", "a=/x/a.gguf", "--against", "b.gguf", "--quantization", "gguf")
    code, output, _ = invoke("--text", text, *arguments, "--passages", 3, "--device", "cpu")
    assert code == 0
    [order] = child["orders"]
    assert (order["model"], order["against"]) == ("/x/a.gguf", "b.gguf")
    assert (order["text"], order["context"], order["passages"]) == (str(text), 512, 3)
    assert (order["config"]["quantization"], order["config"]["device"]) == ("gguf", "cpu")
    for shown in ("20.5000 ± 0.2500", "1.2500", "0.062500", "87.50%", "5.0 MiB", "digits", "50.0%"):
        assert shown in output
    code, output, _ = invoke("--text", text, *arguments, "--json")
    assert json.loads(output) == {"model": "a", "against": "b", **REPORT}


@pytest.mark.parametrize(("limit", "wanted"), [("0.0625", 0), ("0.06", 1)])
def test_too_large_a_divergence_fails(child, text, limit, wanted):
    child["lines"] = [{"report": REPORT}]
    code, output, error = invoke(
        "--text", text, "--model", "a", "--against", "b", "--max-kl", limit
    )
    assert code == wanted
    assert "20.5" in output
    assert ("--max-kl" in error) == bool(wanted)


def test_what_the_process_refuses_or_dies_of_is_said(child, text):
    child["lines"], child["code"] = [{"problem": "it makes images"}], 2
    code, _, error = invoke("--text", text, "--model", "a")
    assert (code, error) == (2, "tandem: it makes images\n")
    child["lines"], child["code"] = [], 5
    code, _, error = invoke("--text", text, "--model", "a")
    assert code == 2
    assert "exit code 5" in error
