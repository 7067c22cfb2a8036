"""The architecture page's table says where things are, and its lives of requests are complete."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/ARCHITECTURE.md").read_text()
PACKAGES = [
    init.parent
    for root in ("server", "engine", "kernels", "loadtest", "evaluation", "tools")
    for init in sorted(ROOT.glob(f"{root}/**/__init__.py"))
    if len(list(init.parent.glob("*.py"))) > 1
]


def test_every_package_is_in_the_table():
    """Each package has its own row, or is below one whose row covers its folders."""
    rows = re.findall(r"^\| `([\w/]+)/`", PAGE, re.MULTILINE)
    deep = [row for row in rows if f"`{row}/` (files)" not in PAGE]
    for folder in PACKAGES:
        package = folder.relative_to(ROOT).as_posix()
        is_below = any(f"{package}/".startswith(f"{row}/") for row in deep)
        assert package in rows or is_below, package


@pytest.mark.parametrize("kind", ["chat", "image"])
def test_a_life_has_ten_steps_with_few_citations(kind):
    life = PAGE.partition(f"## The life of a{'n' * (kind == 'image')} {kind} request")[2]
    life = life.partition("\n## ")[0]
    steps = re.split(r"^\d+\. ", life, flags=re.MULTILINE)[1:]
    assert len(steps) == 10
    for step in steps:
        assert 1 <= len(re.findall(r"`(?:server|engine)/[^`]*`", step)) <= 4, step
