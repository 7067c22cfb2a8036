"""A plot of one run: latency distributions, token rate, and a timeline of all requests."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.record import RequestRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_TIMELINE_ROWS = 400


def plot_run(run: dict[str, Any], path: Path, title: str) -> None:
    """Write a PNG. Raises RuntimeError when matplotlib (the `dev` extra) is not installed."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise RuntimeError("plots need matplotlib: pip install 'tandem-server[dev]'") from error
    mpl.use("Agg")
    from matplotlib.figure import Figure

    records = [RequestRecord.from_row(row) for row in run["requests"]]
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    figure.suptitle(title)
    succeeded = [record for record in records if record.error is None]
    ttft_ms = [record.ttft_s * 1000 for record in succeeded if record.ttft_s is not None]
    _plot_cumulative(axes[0][0], ttft_ms, "time to first token, ms")
    gaps_ms = [gap * 1000 for record in succeeded for gap in record.gaps_s]
    _plot_cumulative(axes[0][1], gaps_ms, "inter-token latency, ms")
    if gaps_ms and max(gaps_ms) > 20 * sorted(gaps_ms)[len(gaps_ms) // 2] > 0:
        axes[0][1].set_xscale("log")
    _plot_rate(axes[1][0], records, run["summary"]["wall_s"])
    _plot_timeline(axes[1][1], records[:_MAX_TIMELINE_ROWS])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _plot_cumulative(axes: "Axes", values: list[float], label: str) -> None:
    """Plot the share of values at or below x, from which percentiles can be read."""
    axes.set_xlabel(label)
    axes.set_ylabel("share")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    if values:
        axes.ecdf(values)


def _plot_rate(axes: "Axes", records: list[RequestRecord], wall_s: float) -> None:
    """Plot text chunks per second, in up to 60 equal slices of the run."""
    arrivals = [record.sent_s + at for record in records for at in record.text_s]
    num_slices = max(1, min(60, int(wall_s * 2)))
    width_s = max(wall_s / num_slices, 1e-9)
    weights = [1 / width_s] * len(arrivals)
    axes.hist(arrivals, bins=num_slices, range=(0, width_s * num_slices), weights=weights)
    axes.set_xlabel("seconds since the start")
    axes.set_ylabel("chunks/s")


def _plot_timeline(axes: "Axes", records: list[RequestRecord]) -> None:
    """Plot a line per request: grey until its first text, then blue, and red if it failed."""
    waits, streams, failures = [], [], []
    for row, record in enumerate(records):
        end = record.sent_s + (record.end_s or 0.0)
        if record.error is not None:
            failures.append((row, record.sent_s, end))
            continue
        first = record.sent_s + (record.ttft_s if record.ttft_s is not None else 0.0)
        waits.append((row, record.sent_s, first))
        streams.append((row, first, end))
    for lines, colour in ((waits, "0.75"), (streams, "tab:blue"), (failures, "tab:red")):
        if lines:
            rows, starts, ends = zip(*lines, strict=True)
            axes.hlines(rows, starts, ends, colors=colour)
    axes.invert_yaxis()
    axes.set_xlabel("seconds since the start (grey: waiting, blue: streaming, red: failed)")
    axes.set_ylabel("request")
