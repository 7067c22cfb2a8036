"""The runs behind docs/SCALING.md, each a function of a machine that returns numbers as JSON."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import mean, median
from typing import Any

from loadtest.metrics import percentile
from tools.scaling.apart import ApartCluster
from tools.scaling.cluster import Cluster, Failure, Outcome, Policy, Served, rate_in_one_cache
from tools.scaling.load import TraceRow, draw_load, read_trace
from tools.scaling.replica import Machine

POLICIES: tuple[Policy, ...] = ("prefixes", "least work", "random")
RATE = 0.2
"""The requests a second for each replica, unless an experiment says otherwise."""
SHORTER = 4
"""How many times shorter answers are than in the trace, so that the runs take minutes."""
SEED = 20_261_201
SIZES = {1: 400, 8: 1600, 64: 3200, 1000: 2000}
"""The requests of each number of replicas. With 1,000 replicas they come within some seconds, in
which no conversation goes on; the run takes minutes."""
RATES = (0.1, 0.2, 0.3, 0.4)
START_S, WAKE_S = 3.9, 0.12
"""How long a worker of the default model takes to start, and to wake from a doze
(docs/decisions/036-models-that-sleep.md)."""

APART_RATES = (0.1, 0.2, 0.3, 0.4)
APART_SPLITS = (4, 5, 6, 7)
SMOOTH_S = 0.025
"""The longest time between tokens, on average, of a text that comes without a pause."""
TRANSFER_S = 0.19e-3
"""How long the keys and values of a token, 23,040 bytes, take through a network of 1 Gbit/s."""


def sizes(machine: Machine) -> list[dict[str, Any]]:
    """Each number of replicas under the same load for each of them, with and without affinity."""
    rows = []
    for number, num_requests in SIZES.items():
        load = draw_load(_trace(machine), number, RATE, num_requests, random.Random(SEED))
        best = rate_in_one_cache(machine, number, load)
        for policy in POLICIES[: 1 if number == 1 else 2]:
            started_s = time.monotonic()
            outcome = Cluster(machine, number, policy).run(load)
            seconds = round(time.monotonic() - started_s)
            rows.append(
                {"replicas": number, "policy": policy, "one_cache": round(best, 4)}
                | _numbers(outcome)
                | {"run_s": seconds}
            )
            print(rows[-1], flush=True)
    return rows


def rates(machine: Machine) -> list[dict[str, Any]]:
    """Eight replicas under more and more load."""
    rows = []
    for rate in RATES:
        load = draw_load(_trace(machine), 8, rate, 240, random.Random(SEED))
        for policy in POLICIES[:2]:
            outcome = Cluster(machine, 8, policy).run(load)
            rows.append({"rate": rate, "policy": policy} | _numbers(outcome))
            print(rows[-1], flush=True)
    return rows


def failure(machine: Machine) -> list[dict[str, Any]]:
    """One replica dies in the middle of the load and is back after a start. The same load without
    that is the measure."""
    rows = []
    for number in (2, 8):
        load = draw_load(_trace(machine), number, RATE, 60 * number, random.Random(SEED))
        at_s = load[len(load) // 2].arrival_s
        whole = Cluster(machine, number).run(load)
        broken = Cluster(machine, number).run(load, [Failure(0, at_s, START_S)])
        minute = [
            (before, after)
            for before, after in zip(whole.served, broken.served, strict=True)
            if at_s - 60 <= before.sent.arrival_s <= at_s + 60
        ]
        rows.append(
            {
                "replicas": number,
                "resent": broken.num_resent,
                "near": len(minute),
                "late": sum(b.is_good and not a.is_good for b, a in minute),
                "mean_wait_s": [
                    round(mean(before.wait_s for before, _ in minute), 2),
                    round(mean(after.wait_s for _, after in minute), 2),
                ],
                "hit_rate": [round(whole.hit_rate, 4), round(broken.hit_rate, 4)],
                "share_good": [round(whole.share_good, 4), round(broken.share_good, 4)],
            }
        )
        print(rows[-1], flush=True)
    return rows


def autoscaling(machine: Machine) -> list[dict[str, Any]]:
    """Two of eight replicas are awake when the load of eight begins; the others wake as they are
    needed."""
    load = draw_load(_trace(machine), 8, RATE, 200, random.Random(SEED))
    rows = []
    for name, num_awake, wake_s in (
        ("all are awake", 8, 0.0),
        ("six doze", 2, WAKE_S),
        ("six have no process", 2, START_S),
        ("six are machines that boot", 2, 60.0),
    ):
        outcome = Cluster(machine, 8, num_awake=num_awake, wake_s=wake_s).run(load)
        first = [one for one in outcome.served if one.sent.arrival_s <= 60]
        woken = [at_s + wake_s for at_s in outcome.woken_s]
        rows.append(
            {
                "start": name,
                "all_awake_s": round(max(woken, default=0.0), 1),
                "p95_wait_s": round(percentile(sorted(one.wait_s for one in first), 95), 2),
                "good_in_first_minute": round(mean(one.is_good for one in first), 4),
            }
            | _numbers(outcome)
        )
        print(rows[-1], flush=True)
    return rows


def apart(machine: Machine) -> list[dict[str, Any]]:
    """Eight replicas that do everything, beside those of which some compute prompts and the others
    continue them; steps with and without the bound that keeps prompts from delaying streams."""
    rows = []
    for rate in APART_RATES:
        load = draw_load(_trace(machine), 8, rate, 240, random.Random(SEED))
        clusters = {
            "all do both": Cluster(machine, 8),
            "all do both, steps of any length": Cluster(replace(machine, max_step_ratio=0.0), 8),
        }
        for num_prefilling in APART_SPLITS:
            name = f"{num_prefilling} compute prompts, {8 - num_prefilling} continue them"
            clusters[name] = ApartCluster(
                machine, num_prefilling, 8 - num_prefilling, lambda n: TRANSFER_S * n
            )
        for name, cluster in clusters.items():
            outcome = cluster.run(load)
            each_ms = sorted(1000 * one.each_s for one in outcome.served)
            rows.append(
                {"rate": rate, "replicas": name}
                | _numbers(outcome)
                | {
                    "share_smooth": round(mean(smooth(one) for one in outcome.served), 4),
                    "p95_token_ms": round(percentile(each_ms, 95), 1),
                }
            )
            print(rows[-1], flush=True)
    return rows


def smooth(one: Served) -> bool:
    """Whether a request is well served even if its tokens are to come without a pause."""
    return one.is_good and one.each_s <= SMOOTH_S


EXPERIMENTS: Mapping[str, Callable[[Machine], list[dict[str, Any]]]] = {
    "sizes": sizes,
    "rates": rates,
    "failure": failure,
    "autoscaling": autoscaling,
    "apart": apart,
}


def _trace(machine: Machine) -> list[TraceRow]:
    """The trace with shorter answers: most of a run's time goes into their tokens."""
    rows = read_trace(machine.max_model_len)
    return [replace(row, answer_len=-(-row.answer_len // SHORTER)) for row in rows]


def _numbers(outcome: Outcome) -> dict[str, Any]:
    waits = sorted(one.wait_s for one in outcome.served)
    number = len(outcome.busy_s)
    return {
        "requests": len(outcome.served),
        "hit_rate": round(outcome.hit_rate, 4),
        "max_over_mean": round(outcome.max_over_mean, 3),
        "share_good": round(outcome.share_good, 4),
        "p50_first_s": round(percentile(waits, 50), 2),
        "p95_first_s": round(percentile(waits, 95), 2),
        "p50_token_ms": round(1000 * median(one.each_s for one in outcome.served), 1),
        "busy": round(sum(outcome.busy_s) / number / outcome.duration_s, 3),
    }
