"""The table of sampler parameters in docs/API.md, made from `engine.contract.sampling_params`.

python -m tools.sampler_table          # writes it into the page
"""

import json
from pathlib import Path

from engine.contract.sampler_order import SAMPLERS
from engine.contract.sampling_params import SAMPLER_PARAMETERS, Patterns, SamplerParameter

PAGE = Path(__file__).parents[1] / "docs" / "API.md"
BEGIN = "<!-- sampler parameters: written by python -m tools.sampler_table -->\n"
END = "<!-- end of sampler parameters -->\n"


def table() -> str:
    """The table in Markdown, in the order in which the parameters act, and a line of samplers."""
    rows = [_row(one) for one in SAMPLER_PARAMETERS.values()]
    names = ", ".join(f"`{name}`" for name in SAMPLERS)
    return "".join(
        [
            "| field | bounds | default | meaning |\n|---|---|---|---|\n",
            *rows,
            f"\n[Samplers](#sampler-order), in their usual order: {names}.\n",
        ]
    )


def page_with(table: str) -> str:
    """The page with this table in place of its old one."""
    page = PAGE.read_text()
    start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    return page[:start] + table + page[end:]


def _row(one: SamplerParameter) -> str:
    names = ", ".join(f"`{name}`" for name in (one.name, *one.other_names))
    default = f"`{json.dumps(one.strings)}`" if one.kind == Patterns else f"{one.neutral:g}"
    default += " (or the model's)" if one.in_checkpoints else ""
    return f"| {names} | {one.bounds} | {default} | {one.text} |\n"


if __name__ == "__main__":
    PAGE.write_text(page_with(table()))
