"""Every setting is documented, and the documents do not drift from the code."""

from pathlib import Path

import pytest

from server.settings import Settings, load_settings
from server.settings.reference import default_yaml, setting_rows, settings_table

ROWS = setting_rows()
CONFIG_FILE = Path(__file__).parents[3] / "configs" / "default.yaml"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_setting_says_what_it_is(row):
    assert row.help.endswith("."), row.help
    assert len(row.help) > 15
    assert row.kind_name


def test_names_are_unique_across_server_and_engine():
    options = [row.option for row in ROWS]
    assert len(set(options)) == len(options), "an option would mean two things"


@pytest.mark.parametrize("row", [r for r in ROWS if r.kind in (int, float)], ids=lambda r: r.name)
def test_every_number_is_bounded(row):
    if row.name == "seed":  # any integer
        return
    value = {row.name: "-2"}
    with pytest.raises(Exception, match=row.option):
        load_settings({"engine": value} if row.is_engine else value)


def test_the_default_file_is_what_the_code_says():
    assert CONFIG_FILE.read_text() == default_yaml(), (
        "rewrite it: python -m server.settings.reference yaml > configs/default.yaml"
    )


def test_the_default_file_loads_as_the_defaults():
    loaded = load_settings({"config": str(CONFIG_FILE)})
    assert loaded.model_dump(exclude={"config"}) == Settings().model_dump(exclude={"config"})


def test_the_table_has_a_line_per_setting():
    assert len(settings_table().splitlines()) == len(ROWS) + 2
