"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Only = Annotated[
    list[str] | None, typer.Option(help="Use only this server of the plan. Repeatable.")
]
Variables = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set a variable of the plan."),
]
Repeats = Annotated[
    int | None, typer.Option(min=1, help="Repeats of every run. Default: the plan's.")
]
MaxNoise = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the CPU that other processes may take.")
]
MaxAttempts = Annotated[int, typer.Option(min=1, help="Most runs per point.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Default: random.")]
Output = Annotated[Path | None, typer.Option(help="Write the raw results (JSON) here.")]
LogDir = Annotated[Path, typer.Option(help="Folder for the servers' own output.")]
Label = Annotated[str | None, typer.Option(help="Title of the result. Default: the plan's.")]

LOGS = Path("build/loadtest")
