"""`tandem quantize`: makes a checkpoint with fewer bits per weight."""

import json
from collections.abc import Mapping
from typing import Any

import typer

from engine.contract.orders import QuantizingOrder
from server.settings import Settings
from server.terminal.own_process import report_of, told_in_a_line
from server.terminal.progress import progress_line

MIB = 1 << 20


@told_in_a_line
def quantize_command(order: QuantizingOrder, settings: Settings, *, as_json: bool) -> int:
    """Make the checkpoint and describe it. Returns the exit code: 2 if it cannot be made."""
    with progress_line() as tell:
        report = report_of(order, settings, settings.engine, tell)
    typer.echo(json.dumps(report, indent=2) if as_json else _told(report))
    return 0


def _told(report: Mapping[str, Any]) -> str:
    sizes = [f"{report[name] / MIB:.1f} MiB" for name in ("bytes_before", "bytes_after")]
    lines = [f"{report['output']}: {report['method']} of {report['model']}, {' → '.join(sizes)}"]
    if "layers" in report:
        lines.append(
            f"{report['layers']} layers in groups of {report['group_size']}; the mean error is "
            f"{report['relative_error']:.1%} of a layer's weights"
        )
    if "few_bits_before" in report:
        lines.append(
            "The original already has few bits per weight "
            f"({', '.join(report['few_bits_before'])}); a checkpoint made from 16-bit weights "
            "would be more accurate"
        )
    measure = (
        f"tandem perplexity --model {report['output']} --against {report['model']} --text FILE"
    )
    return "\n".join([*lines, f"Measure the loss of quality: {measure}"])
