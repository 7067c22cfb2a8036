"""Perplexity of a model as the engine computes it, for comparing weight formats.

    python -m tools.perplexity --model smollm2 --quantization none text.txt

As llama.cpp's `llama-perplexity`: the text is cut into chunks of `--context` tokens without a
start token, each chunk is one prompt, and the tokens of its second half are scored, which have at
least half a chunk before them.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from engine.config import EngineConfig
from engine.llm.engine import LLMEngine
from engine.llm.loading import load_engine
from engine.text.tokenizer import load_tokenizer
from engine.types import GenerateRequest, Phase, SamplingParams, TokenEvent
from engine.weights.source import resolve_source

CACHE = Path("~/.cache/tandem/models").expanduser()
REPORT_EVERY = 10
CHOICES = ("device", "dtype", "quantization", "num_threads")
"""Knobs of the engine that can be given."""


class Host:
    """Grants all memory and keeps reports to itself."""

    def report(
        self, phase: Phase, progress: float | None = None, detail: str | None = None
    ) -> None:
        pass

    def reserve(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> int:
        return capacity_bytes


def main() -> None:
    """Prints a line every few chunks and the result."""
    options = _parser().parse_args()
    knobs = {name: getattr(options, name) for name in CHOICES}
    config = EngineConfig(
        **{name: value for name, value in knobs.items() if value is not None},
        max_model_len=options.context,
        max_num_batched_tokens=options.context,
        enable_prefix_caching=False,
    )
    checkpoint = resolve_source(
        options.model, cache_dir=CACHE, on_progress=lambda fraction, line: None
    )
    tokenizer = load_tokenizer(checkpoint.path)
    text = options.text.read_text()
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    engine, info = load_engine(checkpoint, "model", config, Host())
    chunks = list(_chunks(token_ids, options.context))[: options.chunks]
    print(f"{len(token_ids)} tokens, {len(chunks)} chunks of {options.context}, {info.dtype}")
    start = time.monotonic()
    total, count = 0.0, 0
    for number, chunk in enumerate(chunks, 1):
        scores = score(engine, str(number), chunk)[len(chunk) // 2 + 1 :]
        total -= sum(scores)
        count += len(scores)
        if number % REPORT_EVERY == 0 or number == len(chunks):
            print(f"{number:5}: {math.exp(total / count):.4f}", flush=True)
    seconds = time.monotonic() - start
    print(
        f"perplexity {math.exp(total / count):.4f} over {count} tokens; "
        f"{sum(map(len, chunks)) / seconds:.0f} tokens/s"
    )


def score(engine: LLMEngine, request_id: str, token_ids: list[int]) -> list[float]:
    """Log-probability of each token given those before it; the first has none and gets 0."""
    sampling = SamplingParams(temperature=0.0, max_tokens=0, prompt_logprobs=0)
    engine.add(
        GenerateRequest(
            request_id=request_id, model="model", prompt_token_ids=token_ids, sampling=sampling
        )
    )
    events: list[TokenEvent] = []
    while engine.has_work():
        events += engine.step()[0]
    found = next(event.prompt_logprobs for event in events if event.prompt_logprobs)
    return [0.0 if entry is None else entry.logprob for entry in found]


def _chunks(token_ids: list[int], size: int) -> Iterator[list[int]]:
    """Whole chunks; a shorter rest is left out."""
    for start in range(0, len(token_ids) - size + 1, size):
        yield token_ids[start : start + size]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", required=True, help="as for `tandem serve`")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--chunks", type=int, help="only the first ones")
    types = {field.name: field for field in fields(EngineConfig)}
    for name in CHOICES:
        kind = int if name == "num_threads" else str
        help_text = types[name].metadata["help"].replace("%", "%%")
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=help_text)
    return parser


if __name__ == "__main__":
    main()
