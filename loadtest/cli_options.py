"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Only = Annotated[list[str] | None, typer.Option(help="A server of the plan. Repeatable.")]
Variables = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A variable of the plan.")
]
Repeats = Annotated[int | None, typer.Option(min=1, help="Default: the plan's.")]
MaxNoise = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the CPU that others may take in a run.")
]
MaxAttempts = Annotated[int, typer.Option(min=1, help="Runs per point, at most.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Default: random.")]
Output = Annotated[Path | None, typer.Option(help="Write the raw results (JSON) here.")]
LogDir = Annotated[Path, typer.Option(help="Where the servers' own output goes.")]
Label = Annotated[str | None, typer.Option(help="Default: the plan's.")]

LOGS = Path("build/loadtest")
