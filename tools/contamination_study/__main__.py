"""Measure the methods of `tandem eval contamination` on one half of questions that adapters were
trained on, and one half that nobody has seen. `docs/evaluation.md` has the other commands.

    python -m tools.contamination_study prepare FOLDER
    python -m tools.contamination_study measure FOLDER --model BASE --model ADAPTER …
"""

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import kstest

from evaluation.contamination.base_rate import Separation, from_unseen
from evaluation.contamination.item_text import texts_of
from evaluation.contamination.methods import Knobs, ModelScores
from evaluation.contamination.order import order_p_value
from evaluation.endpoint import Endpoint
from evaluation.resampling import Groups
from evaluation.score_rows import Floats
from evaluation.task import load_task
from tools.contamination_study.material import (
    documents,
    invented_items,
    random_halves,
    write_lines,
)

NUM_SPLITS = 200
KNOBS = Knobs(orders=5, stretch_tokens=160)

Scores = dict[str, tuple[Floats, Floats]]
"""Scores of the seen and of the unseen half by method; of the order, those of all orders."""


def prepare(folder: Path, seed: int) -> None:
    """Write both halves, and the training data: the seen half."""
    folder.mkdir(parents=True, exist_ok=True)
    seen, unseen = random_halves(invented_items(seed), seed + 1)
    write_lines(folder / "seen.jsonl", seen)
    write_lines(folder / "unseen.jsonl", unseen)
    texts = texts_of(load_task(folder / "seen.jsonl"))
    write_lines(folder / "documents.jsonl", [{"text": text} for text in documents(texts)])


async def scored(folder: Path, url: str, model: str) -> Scores:
    """The scores of both halves by a model."""
    halves = [texts_of(load_task(folder / f"{name}.jsonl")) for name in ("seen", "unseen")]
    async with Endpoint(url) as endpoint:
        scores = ModelScores(endpoint, model, KNOBS, concurrency=8)
        asked = {"min_k": scores.min_k, "completion": scores.completion, "order": scores.order}
        found = {}
        for name, ask in asked.items():
            seen, unseen = [np.array(await ask(half)) for half in halves]
            found[name] = (seen, unseen)
    return found


def separation(seen: Floats, unseen: Floats, seed: int = 0) -> Separation:
    """How well single scores tell the halves apart."""
    groups = [Groups([None] * len(half)) for half in (seen, unseen)]
    return from_unseen(seen.tolist(), unseen.tolist(), *groups, seed=seed)


def split_p_values(name: str, values: Floats) -> list[float]:
    """The p-values of random halves, of a model that has seen neither.

    For the order, half of the stretches are drawn, and for each one of its orders, which counts as
    the published one.
    """
    found = []
    for seed in range(NUM_SPLITS):
        draws = np.random.default_rng(seed)
        chosen = draws.permutation(len(values))
        half = chosen[: len(values) // 2]
        if name == "order":
            found.append(order_p_value(draws.permuted(values[half], axis=1), seed=seed))
        else:
            rest = chosen[len(values) // 2 :]
            found.append(separation(values[half], values[rest], seed).p_value)
    return found


def rows(model: str, scores: Scores) -> list[str]:
    """The table's rows of a model."""
    found = []
    for name, (seen, unseen) in scores.items():
        own = [half[:, 0] if name == "order" else half for half in (seen, unseen)]
        area = separation(*own)
        p_value = order_p_value(seen, seed=0) if name == "order" else area.p_value
        interval = f"{area.interval.low:.2f} to {area.interval.high:.2f}"
        found.append(f"| {model} | {name} | {area.auroc:.2f} ({interval}) | {p_value:.4f} |")
    return found


def measure(folder: Path, url: str, models: Sequence[str]) -> None:
    """Print the table, and whether p-values of the first model, the base, are uniform."""
    for model in models:
        scores = asyncio.run(scored(folder, url, model))
        raw = {name: [half.tolist() for half in halves] for name, halves in scores.items()}
        (folder / f"{model}.json").write_text(json.dumps(raw))
        print("\n".join(rows(model, scores)), flush=True)
        if model != models[0]:
            continue
        for name, halves in scores.items():
            p_values = split_p_values(name, np.concatenate(halves))
            test = kstest(p_values, "uniform")
            below = sum(value <= 0.05 for value in p_values)
            print(f"{name}: D = {test.statistic:.3f}, p = {test.pvalue:.2f}, {below} below 0.05")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("prepare", "measure"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--model", action="append", default=[])
    args = parser.parse_args()
    if args.action == "prepare":
        prepare(args.folder, args.seed)
    else:
        measure(args.folder, args.url, args.model)


if __name__ == "__main__":
    main()
