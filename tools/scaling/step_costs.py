"""What steps of the default model cost on this machine, fitted to many steps of a real engine."""

import random
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from engine.contract.generate import GenerateRequest
from engine.contract.kinds import kind_for
from engine.contract.model_spec import DEFAULT_MODELS
from engine.contract.operations import GENERATE
from engine.contract.sampling_params import SamplingParams
from engine.contract.settings import EngineConfig
from engine.llm.cost.step_cost import StepWork
from engine.llm.decision import ScheduleDecision
from engine.llm.scheduler import Scheduler
from engine.llm.start.loading import load_engine
from engine.processes.telling_host import TellingHost
from engine.weights.source import resolve_source
from kernels.machine import cpu_name

_NUM_ROUNDS = 8
_MOST_TEXTS = 16
_MOST_TOKENS = 2048
_LATE = 1.15
"""Steps that took this many times as long as expected were held up by something else."""


_NUM_FITS = 8


def measure(cache_dir: Path) -> dict[str, Any]:
    """Answer random texts, one up to many at a time, and fit the time of the steps."""
    steps = _steps(cache_dir)
    works = np.array([work.sizes for work, _ in steps], dtype=float)
    seconds = np.array([took for _, took in steps])
    costs = fitted(works, seconds)
    usual = seconds < _LATE * (works @ costs)
    errors = np.abs(works @ costs / seconds - 1)[usual]
    return {
        "machine": cpu_name(),
        "model": DEFAULT_MODELS[0],
        "num_steps": len(steps),
        "num_late": int((~usual).sum()),
        "costs": [float(f"{cost:.4g}") for cost in costs],
        "median_error": round(float(np.median(errors)), 3),
        "p90_error": round(float(np.quantile(errors, 0.9)), 3),
    }


def fitted(
    works: "np.ndarray[Any, Any]", seconds: "np.ndarray[Any, Any]"
) -> "np.ndarray[Any, Any]":
    """The costs, none below 0, with the least sum of squared relative errors over the steps that
    were not late. What else runs on the machine only makes steps longer, so a fit to the steps that
    are not late by the fit before comes closer to those that had the machine to themselves."""
    costs = _least_squares(works, seconds)
    for _ in range(_NUM_FITS):
        usual = seconds < _LATE * (works @ costs)
        costs = _least_squares(works[usual], seconds[usual])
    return costs


def _least_squares(works: Any, seconds: Any) -> Any:
    rows = works / seconds[:, None]
    scale = np.maximum(rows.max(axis=0), 1e-12)
    rows = rows / scale
    products, targets = rows.T @ rows, rows.sum(axis=0)
    costs = np.zeros(rows.shape[1])
    for _ in range(3000):  # coordinate descent keeps each at 0 or above
        for i in range(len(costs)):
            rest = targets[i] - products[i] @ costs + products[i, i] * costs[i]
            costs[i] = max(0.0, rest / products[i, i])
    return costs / scale


def _steps(cache_dir: Path) -> list[tuple[StepWork, float]]:
    found: list[tuple[StepWork, float]] = []
    note_time = Scheduler.note_time

    def note(self: Scheduler, decision: ScheduleDecision, seconds: float) -> None:
        found.append((StepWork.of(decision), seconds))
        note_time(self, decision, seconds)

    checkpoint = resolve_source(
        DEFAULT_MODELS[0], cache_dir=cache_dir, offline=False, on_progress=lambda *_: None
    )
    settings: Any = EngineConfig(enable_prefix_caching=False, adaptive_threads=False).of(
        kind_for(GENERATE).settings
    )
    engine, _ = load_engine(checkpoint, "m", settings, TellingHost(lambda _: None))
    with patch.object(Scheduler, "note_time", note):
        for number in range(_NUM_ROUNDS):
            num_texts = 1 + number * (_MOST_TEXTS - 1) // (_NUM_ROUNDS - 1)
            for text in range(num_texts):
                length = round(16 * (_MOST_TOKENS / 16) ** random.random())
                engine.add(
                    GenerateRequest(
                        request_id=f"{number}/{text}",
                        model="m",
                        prompt_token_ids=random.choices(range(100, 10_000), k=length),
                        sampling=SamplingParams(
                            max_tokens=random.randint(20, 80), temperature=0.0, ignore_eos=True
                        ),
                    )
                )
            while engine.has_work():
                engine.step()
    engine.shutdown()
    return [(work, seconds) for work, seconds in found[10:] if any(work.sizes[1:])]
