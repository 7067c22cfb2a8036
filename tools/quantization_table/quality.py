"""Measures the perplexity, the divergence and the memory of each format.

The original reads each passage once for all formats; otherwise this measures what `tandem
perplexity --against` does. Other work on the machine does not affect the results.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import gguf
import torch

from engine.commands.quality.scored_model import ScoredModel, find_model, load_model
from engine.commands.quality.scoring import passage_scores
from engine.commands.quantizing.order import size_of
from engine.contract.knob import GIB
from engine.contract.orders import PlanningOrder
from engine.contract.settings import EngineConfig
from engine.contract.text_settings import Quantization
from engine.planning.planner import make_plan
from engine.processes.telling_host import TellingHost
from engine.runtime.device import machine_facts
from engine.text.scores.passages import ScoredFile
from engine.text.scores.sums import text_report
from engine.weights.quality_record import MeasuredQuality, save_quality
from engine.weights.weight_plan import plan_weights
from kernels.cache_folder import use_cache_folder
from tools.quantization_table.formats import ORIGINAL, Format, Model
from tools.quantization_table.prepare import CACHE, run_llama

CONTEXT = 512
POOL_GIB = 0.1
"""Size of the KV cache of the worker whose memory is planned and measured."""
_ESTIMATE = re.compile(r"Final estimate: PPL = ([\d.]+)")


class Remembered:
    """A model that remembers the states of passages it has read."""

    def __init__(self, model: ScoredModel) -> None:
        self.device = model.device
        self._model = model
        self._states: dict[tuple[int, ...], torch.Tensor] = {}

    def states(self, token_ids: Sequence[int]) -> torch.Tensor:
        key = tuple(token_ids)
        if key not in self._states:
            self._states[key] = self._model.states(token_ids).clone()
        return self._states[key]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return self._model.logits(states)


def measure_quality(
    folder: Path, model: Model, text: Path, passages: int, done: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each format's name and report. Each report is also saved beside the weights, so that a
    server knows the quality of what it serves.

    Args:
        done: formats to skip.
    """
    use_cache_folder(CACHE / "kernels")
    file = ScoredFile(path=text, context=CONTEXT, passages=passages)
    original: Remembered | None = None
    for one, path in model.formats(folder):
        if one.name in done and one is not ORIGINAL:
            continue
        host, config = TellingHost(lambda message: None), config_of(one)
        found = find_model(str(path), config, host, CACHE, True)
        scored = load_model(found, config, host, CONTEXT)
        if one is ORIGINAL:
            original = Remembered(scored)
        against = cast("ScoredModel | None", original)
        report = text_report(
            found.passages(file.read(), file),
            # Read the passages before the next model is loaded.
            lambda passage: passage_scores(scored, passage.token_ids, against),  # noqa: B023
            lambda message: None,
        )
        if one is not ORIGINAL:
            measured = MeasuredQuality.of_report(
                report, kept=scored.kept, against=model.title, text=text.name
            )
            save_quality(found.checkpoint, measured)
        yield one.name, report | sizes(one, path)


def sizes(one: Format, path: Path) -> dict[str, Any]:
    """The sizes of a format in its file and in memory, as planned without reading weights."""
    config = config_of(one)
    found = find_model(str(path), config, TellingHost(lambda message: None), CACHE, True)
    kept = plan_weights(found.checkpoint, found.config, config, machine_facts("cpu"))
    order = PlanningOrder(
        model=str(path),
        config=config,
        context=16,
        cache_dir=CACHE,
        offline=True,
    )
    rows = make_plan(order, lambda message: None)["rows"]
    row = next(row for row in rows if row["quantization"] == one.quantization)
    return {
        "file_bytes": None if one.is_made_at_load else size_of(path),
        "stored_bits": None if one.is_made_at_load else kept.stored_bits,
        "types": {} if one.is_made_at_load else tensor_types(path),
        "weight_bytes": row["weight_bytes"],
        "planned_bytes": row["total_bytes"] - row["kv_bytes"] + int(POOL_GIB * GIB),
    }


def config_of(one: Format) -> EngineConfig:
    return EngineConfig(
        device="cpu",
        dtype="bfloat16",
        quantization=cast(Quantization, one.quantization),
        kv_cache_memory_gib=POOL_GIB,
    )


def tensor_types(path: Path) -> dict[str, int]:
    """The number of matrices of each type in a GGUF file's blocks."""
    if path.suffix != ".gguf":
        return {}
    tensors = gguf.GGUFReader(path).tensors
    blocks = [one for one in tensors if one.name.startswith("blk.") and len(one.shape) == 2]
    return dict(Counter(one.tensor_type.name for one in blocks).most_common())


def llama_perplexity(llama: Path, path: Path, text: Path, passages: int) -> float:
    """llama.cpp's own perplexity for the same passages. It runs on one thread, because two threads
    keep waiting for each other when anything else computes."""
    printed = run_llama(
        *(llama, "llama-perplexity", "-m", str(path), "-f", str(text)),
        *("-c", str(CONTEXT), "--chunks", str(passages), "-t", "1"),
    )
    found = _ESTIMATE.search(printed)
    if found is None:
        raise RuntimeError(f"llama-perplexity gave no estimate: {printed[-2000:]}")
    return float(found[1])
