"""`tandem pull`: what it tells its process, and what it says in the end."""

import json

import pytest
from typer.testing import CliRunner

from server.cli import app


def pull(*arguments, **env):
    result = CliRunner().invoke(app, ["pull", *arguments], env=env)
    return result.exit_code, result.output


def progress(share):
    return {"phase": "downloading", "progress": share, "detail": "fetching it"}


REPORT = {"report": {"model": "name", "path": "/a/file", "bytes": 123_456_789}}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([progress(None), progress(0.5)], "name was fetched: 123.5 MB in /a/file"),
        ([progress(None)], "name is here already: 123.5 MB in /a/file"),
    ],
)
def test_it_says_where_the_model_is(lines, words, child, tmp_path):
    child["lines"] = [*lines, REPORT]
    assert pull("org/a b@main", "--cache-dir", str(tmp_path)) == (
        0,
        f"{words}\nServe it with: tandem serve --model 'org/a b@main'\n",
    )
    [order] = child["orders"]
    assert (order["model"], order["cache_dir"]) == ("org/a b@main", str(tmp_path))
    assert order["offline"] is False


def test_a_name_of_its_own_does_not_matter(child):
    child["lines"] = [REPORT]
    code, output = pull("mine=org/model", "--json")
    assert (code, child["orders"][0]["model"]) == (0, "org/model")
    assert json.loads(output) == {**REPORT["report"], "fetched": False}


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (
            "org/x is not in the cache and offline mode is on; start once with network access",
            ["tandem: org/x is not in the cache", "unset TANDEM_OFFLINE, or run", "copy HF_HOME"],
        ),
        (
            "org/x could not be fetched (ConnectError); check the network",
            ["check the network\nWithout a network: run `tandem pull org/x` on a machine"],
        ),
        ("there is not enough disk space for org/x; free some", ["free some\n"]),
    ],
)
def test_problems_say_what_to_do(problem, words, child):
    child["lines"] = [{"problem": problem}]
    code, output = pull("org/x", TANDEM_OFFLINE="true")
    assert code == 2
    assert all(word in output for word in words), output
    assert child["orders"][0]["offline"] is True
    assert ("network" in output) == ("disk" not in problem)
