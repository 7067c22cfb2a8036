"""Prepare questions of which an adapter is trained on one half, and check that p-values of a model
that has seen neither half are uniform. `docs/evaluation.md` has the commands in between.

    python -m tools.contamination_study prepare FOLDER
    python -m tools.contamination_study splits FOLDER --model BASE
"""

import argparse
import asyncio
from pathlib import Path

import numpy as np
from scipy.stats import kstest

from evaluation.contamination.base_rate import from_unseen
from evaluation.contamination.item_text import texts_of
from evaluation.contamination.methods import Knobs, ModelScores
from evaluation.contamination.order import order_p_value
from evaluation.endpoint import Endpoint
from evaluation.resampling import Groups
from evaluation.score_rows import Floats
from evaluation.task import load_task
from tools.contamination_study.material import documents, invented_items, random_halves, write_lines

NUM_SPLITS = 200
HALVES = ("seen.jsonl", "unseen.jsonl")
KNOBS = Knobs(orders=5, stretch_tokens=160)


def prepare(folder: Path, seed: int) -> None:
    """Write both halves, and the training data: the seen half."""
    folder.mkdir(parents=True, exist_ok=True)
    halves = random_halves(invented_items(seed), seed + 1)
    for name, items in zip(HALVES, halves, strict=True):
        write_lines(folder / name, items)
    texts = texts_of(load_task(folder / HALVES[0]))
    write_lines(folder / "documents.jsonl", [{"text": text} for text in documents(texts)])


async def splits(folder: Path, url: str, model: str) -> None:
    """Print how well the p-values of random splits fit a uniform distribution."""
    texts = [text for name in HALVES for text in texts_of(load_task(folder / name))]
    async with Endpoint(url) as endpoint:
        scores = ModelScores(endpoint, model, KNOBS, concurrency=8)
        found = {
            "min_k": items_p_values(np.array(await scores.min_k(texts))),
            "completion": items_p_values(np.array(await scores.completion(texts))),
            "order": order_p_values(await scores.order(texts)),
        }
    for name, p_values in found.items():
        test = kstest(p_values, "uniform")
        below = sum(value <= 0.05 for value in p_values)
        print(f"{name}: D = {test.statistic:.3f}, p = {test.pvalue:.2f}, {below} below 0.05")


def items_p_values(scores: Floats) -> list[float]:
    """The p-values of random halves of the items against the others."""
    half = len(scores) // 2
    found = []
    for seed in range(NUM_SPLITS):
        drawn = np.random.default_rng(seed).permutation(scores)
        groups = [Groups([None] * half), Groups([None] * (len(scores) - half))]
        found.append(from_unseen(drawn[:half].tolist(), drawn[half:].tolist(), *groups, seed=seed))
    return [one.p_value for one in found]


def order_p_values(preferred: Floats) -> list[float]:
    """The p-values of random halves of the stretches, of each of which one of its orders, drawn at
    random, counts as the published one."""
    found = []
    for seed in range(NUM_SPLITS):
        draws = np.random.default_rng(seed)
        half = draws.permutation(preferred)[: len(preferred) // 2]
        found.append(order_p_value(draws.permuted(half, axis=1), seed=seed))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("prepare", "splits"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    args = parser.parse_args()
    if args.action == "prepare":
        prepare(args.folder, args.seed)
    else:
        asyncio.run(splits(args.folder, args.url, args.model))


if __name__ == "__main__":
    main()
