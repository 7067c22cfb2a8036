"""The comparison of code with an older commit, in a small repository."""

import random
import subprocess
from pathlib import Path

import pytest

from tools import growth

_SCHEDULER = "engine/llm/scheduler.py"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose only commit has a class, a body, a setting and a path of the API."""
    _write(tmp_path, _SCHEDULER, "class Scheduler:\n    def __init__(self):\n        self.a = 1\n")
    _write(tmp_path, "engine/config.py", "class EngineConfig:\n    device: str\n")
    _write(tmp_path, "server/bodies.py", "class Body(WireModel):\n    text: str\n")
    _write(tmp_path, "server/routes.py", "@router.get('/text')\ndef text(): ...\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "Begin"]):
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *names, *command], cwd=tmp_path, check=True)
    return tmp_path


def test_it_compares_lines_classes_and_capabilities(repository: Path) -> None:
    new = random.randint(1, 9)
    with (repository / _SCHEDULER).open("a") as file:
        file.writelines(f"        self.b{i} = 1\n" for i in range(new))
        file.writelines(f"    def c{i}(self): ...\n" for i in range(new))
    _write(repository, "engine/llm/settings.py", "class TextSettings:\n    block_size: int\n")
    _write(repository, "server/chat.py", "class Chat(Body):\n    text: str\n    n: int\n")
    (repository / "server/routes.py").unlink()
    before, after = growth.committed("HEAD", repository=repository), growth.present(repository)
    assert after.lines("engine", ".py") - before.lines("engine", ".py") == 2 * new + 2
    assert before.size("Scheduler") == {"lines": 3, "fields": 1, "methods": 1}
    assert after.size("Scheduler") == {"lines": 3 + 2 * new, "fields": 1 + new, "methods": 1 + new}
    assert after.size("EngineConfig")["fields"] == 2
    assert (before.num_capabilities(), after.num_capabilities()) == (3, 4)
    shown = growth.table(before, after, name="HEAD").splitlines()
    assert [line.split() for line in shown if line.startswith("  server")] == [
        ["server", "4", "5", "+1"]
    ]
    assert ["Scheduler", "1", f"{1 + new}", f"+{new}"] in [line.split() for line in shown]


def test_an_unknown_commit_is_an_error(repository: Path) -> None:
    with pytest.raises(SystemExit, match="no-such-commit"):
        growth.committed("no-such-commit", repository=repository)


def _write(repository: Path, path: str, text: str) -> None:
    (repository / path).parent.mkdir(parents=True, exist_ok=True)
    (repository / path).write_text(text)
