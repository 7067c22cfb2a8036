"""A soak of a few seconds against a real server: clean, and with a planted fault it is not."""

import random

import pytest

from tools.endurance.page import sections
from tools.endurance.served import running, tiny_material
from tools.endurance.soak import Plan, Soak

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


async def test_a_short_soak_is_clean_and_told(tmp_path):
    material = tiny_material(tmp_path / "material")
    plan = Plan(random.randrange(2**31), seconds=5, users=3, lap_s=2.5)
    async with running(material, tmp_path / "log") as server:
        soak = Soak(plan, material, server, print)
        await soak.soak()
        await soak.end()
    run = soak.run
    assert run.problems == []
    assert 1 <= len(run.quiet) <= 2, "a lap may take the time of both"
    assert sum(run.compared.values()) > 0
    told = {"seed": plan.seed, "users": 3, "lap_s": 2.5, "started_at": "2026", "commit": "c"}
    text = sections({"soak": told | {"uncommitted_changes": False} | run.to_json()})["soak"]
    assert "**0 problems**" in text
    assert "Too few quiet points" in text
