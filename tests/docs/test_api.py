"""The API page's table of sampler parameters is the engine's."""

from tools import sampler_table


def test_the_table_of_sampler_parameters_is_the_engines():
    expected = sampler_table.page_with(sampler_table.table())
    assert sampler_table.PAGE.read_text() == expected, "run: python -m tools.sampler_table"
