"""Writes `docs/benchmarks.md` from the committed raw results, so that no number is typed by hand.

Everything in a table is computed from the per-request rows again, not read from stored summaries.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from loadtest.decoding_report import decoding_section
from loadtest.hot_load_report import hot_loads_section
from loadtest.image_report import images_section
from loadtest.markdown import commands, heading, noise_note, number, ratio, table
from loadtest.metrics import ITL_LIMITS_MS
from loadtest.points import (
    Metric,
    Point,
    goodput,
    latency,
    memory,
    points,
    prompt_tokens,
    request_rate,
    summary_of,
    throughput,
    unevenness,
)
from loadtest.results import (
    COMPARISON_FORMAT,
    DECODING_FORMAT,
    HOT_LOADS_FORMAT,
    IMAGES_FORMAT,
    RUN_FORMAT,
    STARTS_FORMAT,
    TURNS_FORMAT,
    load_any_result,
)
from loadtest.turns import turns_section
from loadtest.workload import PEERS_NUM_WORDS, PEERS_OUTPUT_TOKENS

_INTRODUCTION = """\
# Benchmarks

This page is written by `python -m loadtest report` from the files in `docs/benchmarks/raw`, which
hold every request of every run; change it there, not here. `python -m loadtest compare --help`
says how to make such a file; everything else should be quiet while it runs.

**The workload** of a comparison. One request: the text completion prompt "Write a story that uses
these words: " with 100 words drawn at random from 52 common nouns, about 109 tokens; 64 output
tokens, greedy, `ignore_eos`, streamed with usage. Every prompt is new in every run, so no prefix
cache helps. Closed loop: N clients start together, each sends its next request, on a new
connection, when its last one is answered; 12 requests at 1 client, else two per client. Servers run
one at a time, in turn, in an order that rotates from repeat to repeat, unless a table says that all
ran at once (`--together`): then they are asked in turn. In one repeat all get the same prompts. A
few warm-up requests precede every run. Where lengths or counts are others, the table says so.

**Rungs.** A server uses what instructions the processor has, unless the heading says that all were
forced to fewer: to x86-64-v3 (AVX2 and FMA) or x86-64-v4 (AVX-512 without VNNI and BF16), say.
Then Tandem runs with `TANDEM_CPU_ISA`, llama.cpp is compiled for these instructions, and servers
that choose when they start are told by the CPUID instruction that there are no others. That shows
what the code of a rung does; a processor that has no more may differ in clock and caches.

- **out tok/s**: output tokens by the server's own usage / wall time of the whole run, prefill
  included. **TTFT**: request sent (connecting included) to first text. **ITL**: gap between chunks
  of text. Cells are medians over the repeats; ranges are the lowest and highest repeat.
- **unevenness**: the ITL's p99 / p50. **goodput**: requests a second that kept 99 % of their gaps
  between chunks within a limit, of all requests; failed ones never do.
- **start-up**: launch of the command to the first completed request of one token.
- **memory**: proportional set size (PSS) of all the server's processes, after the load.
- **others**: the share of the machine's CPU that was taken by processes other than the server and
  the load generator. Runs above the limit were repeated; a run that never got below it is marked †.

**Images** (`python -m loadtest images`). The other server there is
`python -m loadtest.diffusers_peer`: diffusers' `StableDiffusionPipeline` with the same weights,
threads and noise schedule behind the same endpoint, one request at a time, measured by the same
client. Where a server has variants (element type, memory layout), all are tried shortly and the one
with the most images/s is compared. Prompts are captions of two coloured shapes, drawn at random and
new in every run; the answer is a PNG in base64 and is checked for its size. In one repeat all
servers get the same prompts, seeds and steps, spread evenly over the range.

- **images/s**: pictures / wall time of the whole run; every client sends its next request when its
  last one is answered. **latency**: request sent to the whole answer. **MP·steps/s**: pixels times
  steps, in millions, a second.
- *unbatched* is tandem with `--max-num-rows 2`, one picture in a step: tandem over unbatched is
  what batching gains; unbatched over diffusers is what everything else does.
- **solo, behind**: the latency of a short request alone, and with long ones sent shortly before
  it; medians of a repeat. **worst**: the longest wait over the median alone. **still running**: how
  many of the long ones, at least, were not done when the short one was.
- **text beside images**: the comparison's text workload at one client, alone and while image
  clients keep the server busy, for several values of `--image-share`.

**In turns** (`python -m tools.bench_upscaling`, `python -m loadtest.matting`): programs do the same
work one after the other, then all of them again. Upscalers are given one tile, in one process;
background removal runs as a server here and as the libraries themselves beside it, each in a
process of its own that has loaded and warmed up before. **peak memory** is the resident memory of
the process that does the work, at most.
"""


def render_page(raw: Path) -> str:
    """The page, newest results first. Raises ValueError for a file that is no result."""
    documents = [load_any_result(path) for path in sorted(raw.glob("*.json"))]
    documents.sort(key=lambda document: str(document["started_at"]), reverse=True)
    sections = [_SECTIONS[document["format"]](document) for document in documents]
    if not sections:
        sections = ["No results have been committed yet."]
    return "\n\n".join([_INTRODUCTION.strip(), *sections]) + "\n"


def comparison_section(comparison: dict[str, Any]) -> str:
    measured = points(comparison)
    parts = [heading(comparison), *_load_note(comparison), _comparison_table(comparison, measured)]
    parts += _ratio_parts(comparison, measured)
    if measured:
        parts += ["How even the streams are (medians):", _smoothness_table(comparison, measured)]
    cpus = [run["cpu"] for point in measured for run in point.runs]
    note = noise_note(comparison, cpus)
    parts += [f"{note} {_idle_note(comparison)}" if cpus else note, commands(comparison)]
    return "\n\n".join(parts)


def _load_note(comparison: dict[str, Any]) -> list[str]:
    """A paragraph where requests are not those of the standard workload."""
    words = comparison.get("prompt_words", [PEERS_NUM_WORDS])
    output_tokens = comparison.get("output_tokens", PEERS_OUTPUT_TOKENS)
    counts = comparison.get("num_requests") or {}
    if (words, output_tokens, counts) == ([PEERS_NUM_WORDS], PEERS_OUTPUT_TOKENS, {}):
        return []
    note = f"Prompts of {', '.join(map(str, words))} random words, {output_tokens} output tokens"
    if counts:
        pairs = [f"{count} at {clients}" for clients, count in counts.items()]
        note += f"; requests by the number of clients: {', '.join(pairs)}"
    return [f"{note}. Warm-up requests of this kind before each run: {comparison['warmup']}."]


def _has_lengths(comparison: dict[str, Any]) -> bool:
    return len(comparison.get("prompt_words", ())) > 1


def _length(comparison: dict[str, Any], point: Point) -> list[str]:
    """The cell of a prompt's length; none where all have one."""
    has_lengths = _has_lengths(comparison)
    return [number(point.median_of(prompt_tokens), 0)] if has_lengths else []


def _length_head(comparison: dict[str, Any]) -> list[str]:
    return ["prompt tokens"] if _has_lengths(comparison) else []


def _comparison_table(comparison: dict[str, Any], measured: list[Point]) -> str:
    rows, last = [], None
    for point in measured:
        starts = [s["ready_s"] for s in comparison["starts"] if s["server"] == point.server]
        first = point.server != last
        last = point.server
        mark = "" if all(run["quiet"] for run in point.runs) else " †"
        rows.append(
            [
                point.server if first else "",
                f"{median(starts):.1f}" if first and starts else "",
                *_length(comparison, point),
                str(point.concurrency),
                _with_range(point, throughput) + mark,
                _pair(point, "ttft_ms"),
                _pair(point, "itl_ms"),
                number(point.median_of(memory), 0),
                str(sum(summary["num_failed"] for summary in point.summaries)),
            ]
        )
    heads = ["server", "start-up s", *_length_head(comparison), "clients", "out tok/s (range)"]
    heads += ["TTFT ms p50 / p99", "ITL ms p50 / p99", "memory MiB", "failed"]
    return table(heads, rows, num_text_columns=1)


_RATIOS: dict[str, Metric] = {
    "out tok/s": throughput,
    "TTFT p50": latency("ttft_ms", "p50"),
    "ITL p50": latency("itl_ms", "p50"),
    "ITL p99": latency("itl_ms", "p99"),
    "memory": memory,
}


def _ratio_parts(comparison: dict[str, Any], measured: list[Point]) -> list[str]:
    """For every group of servers: the first one's medians divided by each other one's."""
    groups: dict[str | None, list[str]] = {}
    for server in comparison["servers"]:
        # Older results have one group at most.
        for group in server.get("groups") or [server.get("group")]:
            groups.setdefault(group, []).append(server["name"])
    parts = []
    for subject, *others in groups.values():
        ours = {point.load: point for point in measured if point.server == subject}
        rows = [
            [
                theirs.server,
                *_length(comparison, theirs),
                str(theirs.concurrency),
                *(_ratio(comparison, ours[theirs.load], theirs, m) for m in _RATIOS.values()),
            ]
            for theirs in measured
            if theirs.server in others and theirs.load in ours
        ]
        if rows:
            heads = ["against", *_length_head(comparison), "clients", *_RATIOS]
            of_what = "medians"
            if comparison.get("together"):
                of_what = "all ran at once; medians of a repeat's ratios, lowest to highest"
            parts += [
                f"{subject} against the others ({of_what}; above 1 is more):",
                table(heads, rows, num_text_columns=1),
            ]
    return parts


def _ratio(comparison: dict[str, Any], ours: Point, theirs: Point, metric: Metric) -> str:
    """Where servers were asked in turn, of what lies seconds apart."""
    if not comparison.get("together"):
        return ratio(ours.median_of(metric), theirs.median_of(metric))
    of_theirs = theirs.by_repeat(metric)
    ratios = [
        value / of_theirs[repeat]
        for repeat, value in ours.by_repeat(metric).items()
        if of_theirs.get(repeat)
    ]
    if not ratios:
        return ratio(None, None)
    return f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def _smoothness_table(comparison: dict[str, Any], measured: list[Point]) -> str:
    rows, last = [], None
    for point in measured:
        goodputs = [number(point.median_of(goodput(limit)), 2) for limit in ITL_LIMITS_MS]
        rows.append(
            [
                point.server if point.server != last else "",
                *_length(comparison, point),
                str(point.concurrency),
                number(point.median_of(unevenness), 1),
                *goodputs,
                number(point.median_of(request_rate), 2),
            ]
        )
        last = point.server
    heads = ["server", *_length_head(comparison), "clients", "unevenness"]
    heads += [f"goodput at {limit} ms, req/s" for limit in ITL_LIMITS_MS]
    return table([*heads, "all, req/s"], rows, num_text_columns=1)


def _idle_note(comparison: dict[str, Any]) -> str:
    idle = [start.get("idle_cpu", 0.0) for start in comparison["starts"]]
    return f"Idle, no server took more than {max(idle, default=0.0):.1%}."


def starts_section(document: dict[str, Any]) -> str:
    rows = []
    for server in document["servers"]:
        starts = [start for start in document["starts"] if start["server"] == server["name"]]
        if starts:
            keys = ("first_answer_s", "ready_s", "stop_s")
            values = [[start[key] for start in starts] for key in keys]
            ranges = [f"{median(v):.2f} ({min(v):.2f}-{max(v):.2f})" for v in values]
            rows.append([server["name"], str(len(starts)), *ranges])
    heads = ["server", "starts", "first answer s (range)", "serving s (range)", "stop s (range)"]
    cells = table(heads, rows, num_text_columns=1)
    return "\n\n".join([heading(document), cells, commands(document)])


def run_section(run: dict[str, Any]) -> str:
    summary = summary_of(run)
    rows = [
        [
            run["workload"]["name"],
            str(run["workload"]["concurrency"] or "open loop"),
            f"{summary['num_ok']} / {summary['num_failed']}",
            f"{summary['output_tok_s']:.1f}",
            *(
                " / ".join(f"{summary[name][q]:.0f}" for q in ("p50", "p90", "p99"))
                if summary[name]
                else "-"
                for name in ("ttft_ms", "itl_ms", "e2e_ms")
            ),
            f"{run['memory']['peak_pss_mib']:.0f}" if run["memory"] else "-",
        ]
    ]
    heads = ["workload", "clients", "ok / failed", "out tok/s", "TTFT ms p50 / p90 / p99"]
    heads += ["ITL ms p50 / p90 / p99", "E2E ms p50 / p90 / p99", "peak memory MiB"]
    parts = [heading(run), table(heads, rows, num_text_columns=1), _goodput_line(summary)]
    if slo := run["summary"].get("slo"):
        limits = ", ".join(f"{name} at most {ms:g} ms" for name, ms in slo["limits_ms"].items())
        parts.append(
            f"Goodput ({limits}): {slo['goodput_request_s']:.2f} requests/s, "
            f"{slo['ratio']:.1%} of all."
        )
    return "\n\n".join(parts)


def _goodput_line(summary: dict[str, Any]) -> str:
    found = summary["itl_goodput_request_s"].items()
    parts = ", ".join(f"{limit} ms: {rate:.2f}" for limit, rate in found)
    return f"Requests/s that kept 99 % of their gaps between tokens within {parts}."


_SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    COMPARISON_FORMAT: comparison_section,
    STARTS_FORMAT: starts_section,
    RUN_FORMAT: run_section,
    IMAGES_FORMAT: images_section,
    DECODING_FORMAT: decoding_section,
    HOT_LOADS_FORMAT: hot_loads_section,
    TURNS_FORMAT: turns_section,
}


def _with_range(point: Point, value: Metric) -> str:
    bounds = point.range_of(value)
    if bounds is None:
        return "-"
    return f"{number(point.median_of(value), 0)} ({bounds[0]:.0f}-{bounds[1]:.0f})"


def _pair(point: Point, name: str) -> str:
    p50, p99 = (point.median_of(latency(name, q)) for q in ("p50", "p99"))
    return f"{number(p50)} / {number(p99)}"
