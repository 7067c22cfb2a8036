"""A1111's names of our noise schedules, there and back."""

import pytest

from engine.diffusion.noise_schedule import DIFFUSION_SCHEDULES
from server.images.sampler_names import names_of, scheduler_of

NAMES = [*DIFFUSION_SCHEDULES]


@pytest.mark.parametrize("name", NAMES)
def test_each_name_leads_back(name: str) -> None:
    sampler, schedule_type = names_of(name)
    joined = f"{sampler} {schedule_type}".strip()
    for asked in (
        (sampler, schedule_type),
        (joined, ""),
        (joined.upper(), "automatic"),
        (name, ""),
    ):
        assert scheduler_of(*asked, NAMES) == name


def test_no_two_have_one_name() -> None:
    assert len({names_of(name) for name in NAMES}) == len(NAMES)


def test_what_is_not_offered() -> None:
    assert scheduler_of("Euler", "Karras", ["euler"]) is None
    assert scheduler_of("Restart", "", NAMES) is None
    assert scheduler_of("", "", NAMES) is None
