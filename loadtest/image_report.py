"""The tables of an image comparison, computed from the rows of its requests."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

from loadtest.image_record import ImageRecord, summarise_images
from loadtest.markdown import noise_note, number, origin, ratio, table, versions, with_range
from loadtest.metrics import summarise
from loadtest.record import RequestRecord


@dataclass(frozen=True, slots=True)
class Point:
    """The repeats of one server in one scenario."""

    server: str
    runs: tuple[dict[str, Any], ...]

    @property
    def label(self) -> str:
        """The server's name, with a mark if a run never got quiet."""
        return self.server if all(run["quiet"] for run in self.runs) else f"{self.server} †"

    def values(self, value: "Value") -> list[float]:
        return [v for run in self.runs if (v := value(run)) is not None]

    def median_of(self, value: "Value") -> float | None:
        values = self.values(value)
        return median(values) if values else None


Value = Callable[[dict[str, Any]], float | None]


def images_section(document: dict[str, Any]) -> str:
    """The tables of all scenarios."""
    parts = [origin(document)]
    for scenario in document["scenarios"]:
        points = _points(document, scenario)
        if points:
            text, *rest = _KINDS[scenario["kind"]](document, points)
            parts += [f"**{scenario['name']}**: {text}", *rest]
    cpus = [phase["cpu"] for run in document["runs"] for phase in run["phases"].values()]
    note = f"{noise_note(document, cpus)} {versions(document)}".rstrip()
    return "\n\n".join([*parts, note])


def _points(document: dict[str, Any], scenario: dict[str, Any]) -> list[Point]:
    """The measured servers, in the order of the scenario."""
    found = []
    for server in scenario["servers"]:
        runs = tuple(
            run
            for run in document["runs"]
            if (run["server"], run["scenario"]) == (server, scenario["name"])
        )
        if runs:
            found.append(Point(server, runs))
    return found


def image_summary(phase: dict[str, Any]) -> dict[str, Any]:
    records = [ImageRecord.from_row(row) for row in phase["requests"]]
    return summarise_images(records, phase["summary"]["wall_s"], phase["summary"]["num_planned"])


def text_summary(phase: dict[str, Any]) -> dict[str, Any]:
    records = [RequestRecord.from_row(row) for row in phase["requests"]]
    return summarise(records, phase["summary"]["wall_s"], phase["summary"]["num_planned"])


def _value(key: str, statistic: str | None = None) -> Value:
    """A number of the summary of pictures, or a statistic such as `p50` of a distribution in it."""
    return lambda run: _number(image_summary(run["phases"]["images"])[key], statistic)


def _number(found: Any, statistic: str | None) -> float | None:
    if statistic is None:
        return float(found)
    return float(found[statistic]) if found else None


images_rate = _value("images_s")


def _images_parts(document: dict[str, Any], points: list[Point]) -> list[str]:
    scenario = _scenario(document, points)
    rows = [
        [
            point.label,
            _variants(point),
            with_range(point.values(images_rate), 2),
            " / ".join(
                number(point.median_of(_value("latency_ms", q)), 0) for q in ("p50", "p90", "p99")
            ),
            number(point.median_of(_value("megapixel_steps_s")), 2),
            number(point.median_of(_peak_memory), 0),
            _failures(point),
        ]
        for point in points
    ]
    heads = ["server", "variant", "images/s (range)", "latency ms p50 / p90 / p99"]
    heads += ["MP·steps/s", "peak memory MiB", "failed"]
    clients = scenario["clients"]
    parts = [
        f"{_settings(scenario)}; {scenario['num_requests']} requests from {clients} "
        f"client{'s' if clients > 1 else ''}.",
        table(heads, rows, num_text_columns=2),
    ]
    if len(points) > 1:
        parts.append(_ratios(points))
    return parts + _trials(document, scenario)


def _ratios(points: list[Point]) -> str:
    """Each server's medians divided by those of each server after it."""
    rows = []
    for ours, theirs in combinations(points, 2):
        values = (images_rate, _value("latency_ms", "p50"))
        ratios = [ratio(ours.median_of(value), theirs.median_of(value)) for value in values]
        rows.append([f"{ours.server} / {theirs.server}", *ratios])
    return table(["ratio of medians", "images/s", "latency p50"], rows, num_text_columns=1)


def _trials(document: dict[str, Any], scenario: dict[str, Any]) -> list[str]:
    tried = [
        f"{trial['server']} `{trial['variant']}` {number(images_rate(trial), 2)}"
        for trial in document["trials"]
        if trial["scenario"] == scenario["name"]
    ]
    return [f"Images/s of all variants in one short run each: {', '.join(tried)}."] if tried else []


def solo_ms(run: dict[str, Any]) -> float | None:
    """The median latency of the short request when it is alone."""
    return _number(image_summary(run["phases"]["solo"])["latency_ms"], "p50")


def _behind_rows(run: dict[str, Any]) -> list[list[ImageRecord]]:
    phases = [phase for name, phase in run["phases"].items() if name != "solo"]
    return [[ImageRecord.from_row(row) for row in phase["requests"]] for phase in phases]


def _behind_latencies(run: dict[str, Any]) -> list[float]:
    return [
        record.end_s * 1000
        for records in _behind_rows(run)
        for record in records
        if record.role == "short" and record.error is None and record.end_s is not None
    ]


def behind_ms(run: dict[str, Any]) -> float | None:
    """The median latency of the short request behind the long ones."""
    latencies = _behind_latencies(run)
    return median(latencies) if latencies else None


def behind_ratio(run: dict[str, Any]) -> float | None:
    solo, behind = solo_ms(run), behind_ms(run)
    return None if solo is None or behind is None else behind / solo


def worst_behind_ratio(run: dict[str, Any]) -> float | None:
    """The longest latency behind long requests, divided by the median latency alone."""
    solo, latencies = solo_ms(run), _behind_latencies(run)
    return max(latencies) / solo if solo and latencies else None


def least_still_running(run: dict[str, Any]) -> float | None:
    """The number of long requests that ended after the short one, in the round with the fewest."""
    counts = []
    for records in _behind_rows(run):
        ends = {True: [0.0], False: [0.0]}
        for record in records:
            ends[record.role == "short"].append(record.sent_s + (record.end_s or 0.0))
        counts.append(sum(end > max(ends[True]) for end in ends[False]))
    return min(counts, default=None)


def _behind_parts(document: dict[str, Any], points: list[Point]) -> list[str]:
    scenario = _scenario(document, points)
    rows = [
        [
            point.label,
            with_range(point.values(solo_ms), 0),
            with_range(point.values(behind_ms), 0),
            with_range(point.values(behind_ratio), 2),
            number(max(point.values(worst_behind_ratio), default=None), 2),
            number(min(point.values(least_still_running), default=None), 0),
            _failures(point),
        ]
        for point in points
    ]
    heads = ["server", "solo ms (range)", "behind ms (range)", "behind / solo (range)"]
    heads += ["worst", "still running", "failed"]
    text = (
        f"{_settings(scenario)}; sent {scenario['delay_s'] * 1000:.0f} ms after "
        f"{scenario['num_long']} requests of {scenario['long_steps']} steps, "
        f"{scenario['num_requests']} times."
    )
    return [text, table(heads, rows, num_text_columns=1)]


def _text_value(phase: str, key: str, statistic: str | None = None) -> Value:
    return lambda run: _number(text_summary(run["phases"][phase])[key], statistic)


def images_beside(run: dict[str, Any]) -> float | None:
    return float(image_summary(run["phases"]["beside"]["images"])["images_s"])


def _text_parts(document: dict[str, Any], points: list[Point]) -> list[str]:
    scenario = _scenario(document, points)
    rows = []
    for point in points:
        cells = [point.label]
        for phase in ("alone", "beside"):
            gaps = (_text_value(phase, "itl_ms", q) for q in ("p50", "p99"))
            cells.append(" / ".join(number(point.median_of(gap)) for gap in gaps))
        for phase in ("alone", "beside"):
            cells.append(number(point.median_of(_text_value(phase, "ttft_ms", "p50"))))
        for phase in ("alone", "beside"):
            cells.append(number(point.median_of(_text_value(phase, "output_tok_s"))))
        cells += [with_range(point.values(images_beside), 2), _failures(point)]
        rows.append(cells)
    heads = ["server", "ITL ms p50 / p99 alone", "beside images", "TTFT ms p50 alone"]
    heads += ["beside images", "out tok/s alone", "beside images", "images/s (range)", "failed"]
    text = (
        f"{scenario['num_requests']} completions of {scenario['text_model']}, one at a time, alone "
        f"and beside {scenario['clients']} image clients ({_settings(scenario)})."
    )
    return [text, table(heads, rows, num_text_columns=1)]


_KINDS: dict[str, Callable[[dict[str, Any], list[Point]], list[str]]] = {
    "images": _images_parts,
    "behind": _behind_parts,
    "text": _text_parts,
}


def _scenario(document: dict[str, Any], points: list[Point]) -> dict[str, Any]:
    name = points[0].runs[0]["scenario"]
    found: dict[str, Any] = next(s for s in document["scenarios"] if s["name"] == name)
    return found


def _settings(scenario: dict[str, Any]) -> str:
    size = scenario["size"]
    steps = scenario["steps"].replace(":", " to ")
    return f"{size}x{size} px, {steps} steps, guidance {scenario['guidance']:g}"


def _variants(point: Point) -> str:
    names = dict.fromkeys(run["variant"] for run in point.runs)
    return ", ".join(f"`{name}`" for name in names if name)


def _phases(point: Point) -> list[dict[str, Any]]:
    found = [phase for run in point.runs for phase in run["phases"].values()]
    return found + [phase["images"] for phase in found if "images" in phase]


def _failures(point: Point) -> str:
    return str(sum("error" in row for phase in _phases(point) for row in phase["requests"]))


def _peak_memory(run: dict[str, Any]) -> float | None:
    peaks = [p["memory"]["peak_pss_mib"] for p in run["phases"].values() if p.get("memory")]
    return max(peaks, default=None)
