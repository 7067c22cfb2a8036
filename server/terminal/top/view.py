"""Draws a reading: the whole server, its models, memory and requests."""

import time

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from engine.planning.plain_text import GIB
from server.terminal.top.reading import Reading, growth
from server.terminal.visible import visible

_MAX_REQUESTS = 30
_BAR_CELLS = 30
_STYLES = {"ready": "green", "failed": "bold red", "stopped": "red"}
"""Colours of phases; those without one are in progress."""


def view(url: str, before: Reading | None, now: Reading, problem: str | None) -> RenderableType:
    """The picture of a moment.

    Args:
        before: an earlier reading, for speeds.
        problem: why there is no newer reading.
    """
    parts: list[RenderableType] = [_title(url, before, now)]
    if problem is not None:
        parts.append(Text(visible(problem), style="bold red"))
    parts += [Text(), _models(before, now), *_memory(now), Text(), _requests(now)]
    return Group(*parts)


def _title(url: str, before: Reading | None, now: Reading) -> Text:
    facts = (
        f"{now.running()} running, {now.waiting()} waiting",
        f"{growth(before, now, Reading.tokens):.1f} tokens/s",
        f"{growth(before, now, Reading.images):.2f} images/s",
    )
    return Text(f"{url} is {now.phase}: {', '.join(facts)}", style="bold")


def _models(before: Reading | None, now: Reading) -> Table:
    table = Table("model", "state", box=None, padding=(0, 2, 0, 0))
    for name in ("running", "waiting", "KV cache", "tokens/s", "images/s", "memory"):
        table.add_column(name, justify="right")
    for state in now.models:
        table.add_row(*_row(state["model"], state, before, now))
    return table


def _row(
    model: str, state: dict[str, object], before: Reading | None, now: Reading
) -> list[str | Text]:
    of = {"model_name": model}
    names = {one.name for one in now.samples if of.items() <= one.labels.items()}
    is_text, draws = "kv_cache_usage_ratio" in names, "image_num_running" in names
    tokens = growth(before, now, lambda reading: reading.tokens(model))
    images = growth(before, now, lambda reading: reading.images(model))
    return [
        Text(visible(model)),
        _state(state),
        str(now.running(**of)),
        str(now.waiting(**of)),
        f"{now.sum('kv_cache_usage_ratio', **of):.0%}" if is_text else "",
        f"{tokens:.1f}" if is_text else "",
        f"{images:.2f}" if draws else "",
        _gib(now.sum("memory_held_bytes", **of)),
    ]


def _state(state: dict[str, object]) -> Text:
    phase, progress, detail = str(state["phase"]), state["progress"], state["detail"]
    words = [phase] if not isinstance(progress, float) else [phase, f"{progress:.0%}"]
    if detail and phase != "ready":
        words.append(visible(str(detail)))
    return Text(" ".join(words), style=_STYLES.get(phase, "yellow"))


def _memory(now: Reading) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for one in now.samples:
        if one.name == "memory_budget_bytes":
            device = one.labels["device"]
            held = now.sum("memory_held_bytes", device=device)
            row = Table.grid(padding=(0, 1))
            said = f"{_gib(held)} of {_gib(one.value)} are reserved"
            bar = ProgressBar(max(one.value, 1.0), held, width=_BAR_CELLS)
            row.add_row(Text(f"memory of {visible(device)}"), bar, Text(said))
            lines += [Text(), row]
    return lines


def _requests(now: Reading) -> RenderableType:
    if not now.requests:
        return Text("No requests are in work.", style="dim")
    table = Table("request", "does", "model", "state", box=None, padding=(0, 2, 0, 0))
    for name in ("age", "done"):
        table.add_column(name, justify="right")
    for one in now.requests[:_MAX_REQUESTS]:
        does = one["operation"] or one["kind"]
        age = max(0.0, time.time() - one["created"])
        cells = (one["id"], does, one["model"], one["status"], f"{age:.0f} s", _done(one))
        table.add_row(*(Text(visible(cell)) for cell in cells))
    more = len(now.requests) - _MAX_REQUESTS
    return Group(table, Text(f"and {more} more")) if more > 0 else table


def _done(request: dict[str, object]) -> str:
    progress, tokens = request["progress"], request["completion_tokens"]
    if isinstance(progress, float):
        return f"{progress:.0%}"
    return "" if tokens is None else f"{tokens} tokens"


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f} GiB"
