"""The operations page names every metric and only settings that exist."""

import re
from pathlib import Path

from server.metrics import ServerMetrics
from server.settings.reference import setting_rows
from tests.helpers.server.fake_engine import FakeEngine

PAGE = (Path(__file__).parents[2] / "docs/OPERATIONS.md").read_text()


def test_all_metrics_are_in_the_table():
    registry = ServerMetrics(FakeEngine()).registry
    names = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in registry.collect()
    }
    ours = {name for name in names if name.startswith("tandem_")}
    assert set(re.findall(r"`(tandem_\w+)", PAGE)) == ours


def test_its_options_exist():
    options = {row.option for row in setting_rows()}
    assert set(re.findall(r"`(--[a-z-]+)", PAGE)) <= options
