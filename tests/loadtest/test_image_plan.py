from pathlib import Path

import pytest

from loadtest.image_plan import ScenarioKind, load_image_plan

SERVERS = """
servers:
  - {name: a, command: exec a $VARIANT, url: "http://h:1/v1", model: m, variants: [x, y]}
  - {name: a2, command: exec a2 $VARIANT, url: "http://h:1/v1", model: m, same_variant_as: a}
  - {name: b, command: exec b, url: "http://h:2/v1", model: m}
"""
SCENARIOS = """
scenarios:
  - {name: draw, kind: images, servers: [a, a2], size: 64, steps: 10:40, num_requests: 9,
     clients: 8}
  - {name: wait, kind: behind, servers: [b], size: 64, steps: 10, num_requests: 3, num_long: 4}
  - {name: read, kind: text, servers: [b], size: 64, steps: 10, num_requests: 3, text_model: t}
"""
ROOT = Path(__file__).parents[2]


def write(folder: Path, text: str) -> Path:
    path = folder / "images.yaml"
    path.write_text(text)
    return path


def test_a_plan(tmp_path: Path) -> None:
    plan = load_image_plan(write(tmp_path, "label: L\nrepeats: 2" + SERVERS + SCENARIOS))
    assert (plan.label, plan.repeats) == ("L", 2)
    assert [server.variants for server in plan.servers] == [("x", "y"), ("x", "y"), ("",)]
    assert plan.servers[0].variant("y").variables == {"VARIANT": "y"}
    draw, wait, read = plan.scenarios
    assert (draw.settings.steps.low, draw.settings.steps.high, draw.clients) == (10, 40, 8)
    assert (wait.kind, wait.num_long, wait.long_steps) == (ScenarioKind.BEHIND, 4, 50)
    assert "num_long" in wait.to_json() and "clients" not in wait.to_json()
    assert read.text_model == "t"


def test_a_rung_is_a_variable_like_others(tmp_path: Path) -> None:
    text = "rung: ${ISA}\nvariables: {ISA: native}" + SERVERS + SCENARIOS
    path = write(tmp_path, text)
    assert load_image_plan(path).rung == "native"
    assert load_image_plan(path, {"ISA": "x86-64-v3"}).rung == "x86-64-v3"


def test_every_server_of_the_shipped_plan_is_held_to_its_rung() -> None:
    plan = load_image_plan(ROOT / "loadtest" / "scenarios" / "images.yaml", {"ISA": "x86-64-v3"})
    assert plan.rung == "x86-64-v3"
    for server in plan.servers:
        assert server.command.command.startswith(("exec $SERVE ", "exec $HELD $ISA "))
        assert server.command.variables["SERVE"].startswith("loadtest/peers/held.sh x86-64-v3 ")


def test_parts_of_a_plan(tmp_path: Path) -> None:
    plan = load_image_plan(write(tmp_path, SERVERS + SCENARIOS))
    only_b = plan.only(["b"], [])
    assert [scenario.name for scenario in only_b.scenarios] == ["wait", "read"]
    assert [server.name for server in only_b.servers] == ["b"]
    assert [s.name for s in plan.only([], ["draw"]).servers] == ["a", "a2"]
    with pytest.raises(ValueError, match="no server is called 'c'; there are: a, a2, b"):
        plan.only(["c"], [])
    with pytest.raises(ValueError, match="no scenario is called 'c'; there are: draw, wait, read"):
        plan.only([], ["c"])
    with pytest.raises(ValueError, match="none of these"):
        plan.only(["b"], ["draw"])


def test_a_server_chooses_for_itself_when_its_model_is_left_out(tmp_path: Path) -> None:
    plan = load_image_plan(write(tmp_path, SERVERS + SCENARIOS))
    assert plan.only([], []) == plan
    assert plan.servers[1].same_variant_as == "a"
    assert plan.only(["a2"], []).servers[0].same_variant_as is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (SERVERS, "scenarios"),
        (SERVERS + SCENARIOS.replace("images,", "films,"), "images, behind, text"),
        (SERVERS + SCENARIOS.replace("clients: 8", "cleints: 8"), "unknown keys: cleints"),
        (SERVERS + SCENARIOS.replace("num_long: 4", "clients: 4"), "unknown keys: clients"),
        (SERVERS + SCENARIOS.replace(", text_model: t", ""), "lacks: text_model"),
        (SERVERS + SCENARIOS.replace("name: read", "name: wait"), "the same name: 'wait'"),
        (SERVERS + SCENARIOS.replace("[a, a2]", "[a, q]"), "no server is called 'q'"),
        (SERVERS + SCENARIOS.replace("10:40", "40:10"), "40:10"),
        (SERVERS + SCENARIOS.replace("clients: 8", "clients: 0"), "at least 1"),
        (SERVERS.replace("same_variant_as: a", "same_variant_as: b") + SCENARIOS, "'b'"),
        (
            SERVERS.replace("same_variant_as: a", "same_variant_as: a, variants: [z]") + SCENARIOS,
            "keep one",
        ),
        (SERVERS.replace("variants: [x, y]", "varaints: [x]") + SCENARIOS, "varaints"),
    ],
)
def test_wrong_plans(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        load_image_plan(write(tmp_path, text))


def test_variants_need_one_number_to_be_told_apart(tmp_path: Path) -> None:
    text = SERVERS + SCENARIOS.replace("behind, servers: [b]", "behind, servers: [a]")
    with pytest.raises(ValueError, match="a has variants: it can be in images scenarios only"):
        load_image_plan(write(tmp_path, text))


def test_the_shipped_plan() -> None:
    plan = load_image_plan(ROOT / "loadtest/scenarios/images.yaml")
    assert {scenario.kind for scenario in plan.scenarios} == set(ScenarioKind)
    assert [str(scenario.settings.steps) for scenario in plan.scenarios[:2]] == ["10:40"] * 2
    quick = plan.quick()
    assert quick.repeats == 1
    assert all(s.num_requests <= 2 and s.clients <= 2 for s in quick.scenarios)
    assert [s.name for s in quick.scenarios] == [s.name for s in plan.scenarios]


def test_the_plan_of_adapters() -> None:
    plan = load_image_plan(ROOT / "loadtest/scenarios/image-adapters.yaml")
    models = {server.name: len(server.command.models) for server in plan.servers}
    assert models == {"one adapter": 0, "eight adapters": 8, "no adapter": 0}
