from pathlib import Path

import pytest

from loadtest.plan import load_plan

PLAN = """
label: two servers
concurrencies: [1, 4]
variables: {ROOT: "~/peers", MODELS: "${ROOT}/models", PORT: 8100}
servers:
  - {name: a, command: "exec $ROOT/a --port ${PORT}", url: "http://h:${PORT}/v1", model: m}
  - {name: b, command: exec b, url: "http://h:2/v1", model: "${MODELS}/m", version_command: b -v}
"""


@pytest.fixture
def plan_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", "/home/x")
    for name in ("ROOT", "MODELS", "PORT"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


def test_a_plan(plan_path: Path) -> None:
    plan = load_plan(plan_path)
    first, second = plan.servers
    assert first.variables == {
        "ROOT": "/home/x/peers",
        "MODELS": "/home/x/peers/models",
        "PORT": "8100",
    }
    assert first.command == "exec $ROOT/a --port ${PORT}"
    assert first.url == "http://h:8100/v1"
    assert first.variables == second.variables
    assert second.model == "/home/x/peers/models/m"
    assert (plan.label, plan.concurrencies, plan.repeats, plan.warmup) == (
        "two servers",
        (1, 4),
        3,
        4,
    )


def test_where_variables_come_from(plan_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOT", "/env")
    monkeypatch.setenv("PORT", "1")
    plan = load_plan(plan_path, {"PORT": "2"})
    assert plan.servers[0].variables == {"ROOT": "/env", "MODELS": "/env/models", "PORT": "2"}


def test_parts_of_a_plan(plan_path: Path) -> None:
    plan = load_plan(plan_path)
    assert [server.name for server in plan.only(["b"]).servers] == ["b"]
    with pytest.raises(ValueError, match="'c'; there are: a, b"):
        plan.only(["c"])
    assert plan.having(repeats=9, concurrencies=(2,)).repeats == 9
    assert plan.having() == plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping"),
        ("servers: [3]", "a server must be a mapping"),
        ("servers: []\nrepeat: 2", "the plan has unknown keys: repeat"),
        ("label: x", "the plan lacks: servers"),
        ("servers: [{name: a, command: b, url: c}]", "a server lacks: model"),
        ("servers: [{name: a, command: b, url: '${X}', model: m}]", r"\$\{X\} is not among"),
        (PLAN.replace("name: b", "name: a"), "same name"),
    ],
)
def test_plans_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_plan(path)


def test_the_projects_own_plans_load() -> None:
    folder = Path(__file__).parents[2] / "loadtest" / "scenarios"
    paths = list(folder.glob("peers*.yaml"))
    assert paths
    for path in paths:
        assert len(load_plan(path).servers) >= 1
