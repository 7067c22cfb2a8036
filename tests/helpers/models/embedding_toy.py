"""An embedding engine with a toy model whose answers are easy to predict."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from engine.contract.embed import EmbeddingRequest
from engine.embedding.work import EmbeddingEngine, EmbeddingLimits, EmbeddingWork

LIMITS = EmbeddingLimits(
    max_model_len=20,
    vocab_size=100,
    dimensions=3,
    normalizes=False,
    max_num_seqs=4,
    max_num_batched_tokens=30,
    max_num_queued=8,
)
POISON, HOLLOW = 66, 77
"""Token ids: a text with the first cannot be embedded, one with the second is not finite."""


class Toy:
    """Embeds a text as its first token, its length and 2; notes what shares a call."""

    def __init__(self) -> None:
        self.calls: list[list[list[int]]] = []

    def embed(self, texts: Any) -> torch.Tensor:
        self.calls.append([list(text) for text in texts])
        if any(POISON in text for text in texts):
            raise ZeroDivisionError
        rows = [[float(text[0]), float(len(text)), 2.0] for text in texts]
        for row, text in zip(rows, texts, strict=True):
            if HOLLOW in text:
                row[1] = float("nan")
        return torch.tensor(rows)


def make(**changes: Any) -> tuple[EmbeddingEngine, Toy]:
    toy, limits = Toy(), replace(LIMITS, **changes)
    return EmbeddingEngine(EmbeddingWork(toy, limits), limits), toy


def ask(request_id: str, *inputs: list[int], **fields: Any) -> EmbeddingRequest:
    return EmbeddingRequest(request_id=request_id, model="m", inputs=list(inputs), **fields)


def numbers(event: Any) -> list[float]:
    return np.frombuffer(event.embedding, "<f4").tolist()


def run(engine: EmbeddingEngine) -> dict[tuple[str, int], Any]:
    found: dict[tuple[str, int], Any] = {}
    while engine.has_work():
        for event in engine.step()[0]:
            assert (event.request_id, event.index) not in found
            found[event.request_id, event.index] = event
    return found
