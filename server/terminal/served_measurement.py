"""Measures the perplexity of a running server's model over HTTP, as any client could.

It needs `/tokenize`, and the scores of a prompt from `/v1/completions`: `echo`, `logprobs` and
`max_tokens: 0`. vLLM has both, too.
"""

import time
from typing import Any

import httpx

from engine.contract.host import Tell
from engine.text.scores.passages import (
    Passage,
    ScoredFile,
    cut_passages,
    first_scored,
    start_token,
)
from engine.text.scores.sums import TokenScore, text_report
from engine.text.token_pieces import spelled_pieces
from server.terminal.client import ServerProblem, fetch


def served_report(
    client: httpx.Client, model: str, text: str, file: ScoredFile, tell: Tell
) -> dict[str, Any]:
    """A report like that of `engine.commands.quality.measurement.measure`, without the memory of
    weights.

    Raises:
        ServerProblem: no server answers, or it lacks what is needed.
        InvalidParameter: the text is shorter than a passage.
    """
    cut = _passages(client, model, text, file)
    start = time.perf_counter()
    report = text_report(cut, lambda passage: _scores(client, model, passage), tell)
    seconds = time.perf_counter() - start
    return {**report, "weight_bytes": None, "tokens_per_s": len(cut) * file.context / seconds}


def _passages(client: httpx.Client, model: str, text: str, file: ScoredFile) -> list[Passage]:
    probe = [_tokenized(client, model, "a", special)["tokens"] for special in (True, False)]
    answer = _tokenized(client, model, text, False)
    spelled = answer.get("token_strs")
    pieces = None if spelled is None else spelled_pieces(spelled, text)
    start = start_token(*probe)
    return cut_passages(answer["tokens"], pieces, start=start, file=file)


def _tokenized(client: httpx.Client, model: str, text: str, special: bool) -> dict[str, Any]:
    body = {
        "model": model,
        "prompt": text,
        "add_special_tokens": special,
        "return_token_strs": True,
    }
    answer = fetch(client, "/tokenize", body)
    if not isinstance(answer, dict) or not isinstance(answer.get("tokens"), list):
        raise ServerProblem(
            "/tokenize of this server returns no token ids; load the model here "
            "with --model and without --url"
        )
    return answer


def _scores(client: httpx.Client, model: str, passage: Passage) -> list[TokenScore]:
    body = {
        "model": model,
        "prompt": passage.token_ids,
        "max_tokens": 0,
        "echo": True,
        "logprobs": 0,
        "temperature": 0,
    }
    answer = fetch(client, "/v1/completions", body)
    try:
        logprobs = answer["choices"][0]["logprobs"]["token_logprobs"]
        scored = logprobs[first_scored(len(passage.token_ids)) : len(passage.token_ids)]
        scores = [TokenScore(-logprob) for logprob in scored]
    except (KeyError, IndexError, TypeError):
        scores = []
    if len(scores) != len(passage.token_ids) - first_scored(len(passage.token_ids)):
        raise ServerProblem(
            "this server returns no log-probabilities of a prompt (/v1/completions with echo, "
            "logprobs and max_tokens 0); load the model here with --model and without --url"
        )
    return scores
