"""Examines everything that a server with these settings would need, and prints what was found."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console

from server.doctor import address, cache, gpu, memory, processor, software
from server.doctor.finding import Finding
from server.settings import Settings

_STYLES = {"ok": "green", "limited": "yellow", "broken": "bold red"}


def doctor_command(settings: Settings, *, as_json: bool) -> int:
    """Examine and print. Returns the exit code: 1 if this machine cannot serve."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    findings = []
    for finding in examine(settings):
        findings.append(finding)
        if not as_json:
            _show(console, finding)
    can_serve = all(one.health != "broken" for one in findings)
    if as_json:
        report = {"can_serve": can_serve, "findings": [asdict(one) for one in findings]}
        typer.echo(json.dumps(report, indent=2))
    else:
        console.print(f"\n{_verdict(findings)}")
    return 0 if can_serve else 1


def examine(settings: Settings) -> Iterator[Finding]:
    """The findings, the quick ones first."""
    yield software.python()
    yield software.packages()
    yield processor.processor(settings.cpu_isa)
    yield software.compiler(settings.cpu_isa)
    yield gpu.gpu(settings.engine.device)
    yield cache.cache_folder(settings.cache_path)
    yield cache.disk(settings.cache_path, settings.model_specs)
    if settings.engine.kv_store is not None:
        store = Path(settings.engine.kv_store).expanduser()
        yield cache.kv_store(store, settings.engine.kv_store_bytes)
    yield address.port(settings)
    yield address.connections(settings)
    yield from memory.memory(settings)


def _show(console: Console, finding: Finding) -> None:
    console.print(f"{finding.health:<8}", style=_STYLES[finding.health], end="")
    console.print(f"{finding.part}: {finding.found}")
    if finding.fix is not None:
        console.print(f"        fix: {finding.fix}")


def _verdict(findings: list[Finding]) -> str:
    broken = [one.part for one in findings if one.health == "broken"]
    if broken:
        return f"This machine cannot serve yet. Fix first: {', '.join(broken)}."
    if any(one.health == "limited" for one in findings):
        return "This machine can serve: tandem serve. The limited parts are worth fixing."
    return "This machine can serve: tandem serve."
