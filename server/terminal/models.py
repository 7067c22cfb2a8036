"""`tandem models`: the models that a running server serves and may load, and the built-in names."""

from typing import Any

import typer
from rich.console import Console
from rich.table import Column, Table

from engine.contract.built_in import BUILT_IN
from server.settings import ClientSettings
from server.terminal.client import ServerProblem, fetch, open_client


def models_command(settings: ClientSettings) -> int:
    """Print these lists. Returns the exit code: 1 if no server answers."""
    console = Console(markup=False, highlight=False)
    console.print("Built in:")
    console.print(_built_in())
    try:
        with open_client(settings) as client:
            states = fetch(client, "/ready", accept=(200, 503))["models"]
            cards = fetch(client, "/models")["data"]  # this needs the key, unlike /ready
    except ServerProblem as problem:
        typer.echo(f"tandem: {problem}", err=True)
        return 1
    console.print(f"\nServed at {settings.url}:")
    console.print(_table(states))
    there = {state["model"] for state in states}
    loadable = [card["id"] for card in cards if card["loadable"] and card["id"] not in there]
    if loadable:
        console.print(f"May be loaded: {', '.join(loadable)}")
    return 0


def _built_in() -> Table:
    columns = Column("name", no_wrap=True, overflow="ignore"), "does", "download"
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for ref, model in BUILT_IN.items():
        table.add_row(ref, model.deed, f"{model.megabytes} MB" if model.megabytes else "none")
    return table


def _table(states: list[dict[str, Any]]) -> Table:
    table = Table("model", "state", box=None, padding=(0, 2, 0, 0))
    for state in states:
        share = "" if state["progress"] is None else f" {state['progress']:.0%}"
        detail = f": {state['detail']}" if state["detail"] else ""
        table.add_row(state["model"], state["phase"] + share + detail)
    return table
