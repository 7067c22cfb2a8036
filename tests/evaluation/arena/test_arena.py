"""`tandem eval arena`: answers, verdicts in both orders, ratings."""

import io
import json
import random

import httpx
import pytest
from rich.console import Console

from evaluation.arena import commands
from evaluation.arena.judge import Judge, verdict_of
from evaluation.arena.matches import Match, matches_of
from evaluation.arena.person import vote_in_terminal
from evaluation.arena.vote_file import VoteFile, load_votes
from evaluation.run_file import load_run
from evaluation.task import Item

NUM = 6
CHAT = "/v1/chat/completions"


class Contest:
    """Models whose answers are their names, and a judge that prefers an answer, or the first."""

    def __init__(self, words, better=None):
        self.words = words
        self.better = better
        self.judged = []
        self._handle = words.handle
        words.handle = self.handle

    async def handle(self, request):
        body = json.loads(request.content)
        model = body["model"]
        if model == "judge":
            content = body["messages"][-1]["content"]
            self.judged.append(body)
            first = content.partition("# Answer 1\n\n")[2].partition("\n")[0]
            is_first = first == self.better or self.better is None
            text = json.dumps({"reason": "so", "winner": "1" if is_first else "2"})
            return httpx.Response(200, json={"choices": [{"message": {"content": text}}]})
        self.words.reply = lambda text: model
        return await self._handle(request)


@pytest.fixture
def prompts(written):
    return written("prompts.jsonl", *({"prompt": f"question {i}"} for i in range(NUM)))


def arena(invoke, prompts, folder, *options):
    models = ("--model", "a", "--model", "b", "--model", "org/c")
    code, out, err = invoke(
        "arena", prompts, *models, "--judge", "judge", "-o", folder, "--json", *options
    )
    assert code == 0, err
    return json.loads(out)


def test_every_pair_is_judged_in_both_orders(words, invoke, prompts, tmp_path):
    contest = Contest(words)
    report = arena(invoke, prompts, tmp_path / "arena")
    votes = load_votes(tmp_path / "arena" / "votes.jsonl")
    keys = {(vote.prompt, vote.first, vote.second) for vote in votes}
    assert len(votes) == len(keys) == len(contest.judged) == NUM * 6
    # The judge prefers what it sees first: no model is better, and the order is all.
    assert [one["rating"] for one in report["models"]] == pytest.approx([1000] * 3, abs=1e-3)
    assert report["order_effect"]["value"] == 0.5
    assert report["agreement"]["num_same"] == 0 and report["agreement"]["num"] == NUM * 3
    body = contest.judged[0]
    assert body["response_format"]["type"] == "json_schema" and body["temperature"] == 0
    assert "# Question\n\nquestion " in body["messages"][-1]["content"]


def test_a_judge_that_prefers_a_model(words, invoke, prompts, tmp_path):
    Contest(words, better="a")
    report = arena(invoke, prompts, tmp_path / "arena")
    assert report["models"][0]["model"] == "a"
    assert report["models"][0]["share_of_points"] == 1.0
    assert any(note.startswith("a gave no point") for note in report["notes"])


def test_an_arena_goes_on_where_it_ended(words, invoke, prompts, tmp_path):
    contest = Contest(words)
    folder = tmp_path / "arena"
    whole = arena(invoke, prompts, folder)
    path = folder / "votes.jsonl"
    kept = random.randint(0, NUM * 6 - 1)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: kept + 1]) + '{"prompt_id"')
    contest.judged.clear()
    words.bodies.clear()
    assert arena(invoke, prompts, folder)["models"] == whole["models"]
    assert len(contest.judged) == NUM * 6 - kept and words.bodies == []
    code, out, _ = invoke("ratings", path, "--plot", tmp_path / "ratings.svg")
    assert code == 0 and "org/c" in out and "36 votes about 6 prompts" in out
    assert (tmp_path / "ratings.svg").read_bytes().startswith(b"<?xml")


def test_an_arena_needs_two_models(words, invoke, prompts, tmp_path):
    for models in (("--model", "a"), ("--model", "a", "--model", "a")):
        code, _, err = invoke("arena", prompts, *models, "--judge", "j", "-o", tmp_path / "x")
        assert code == 2 and "two or more different models" in err


def test_the_key_of_one_server_is_not_sent_to_another(
    words, invoke, prompts, tmp_path, monkeypatch
):
    seen = []

    def command(contest, folder, shown):
        seen.append((contest.address, contest.judge_address))
        return 0

    monkeypatch.setattr(commands, "arena_command", command)
    monkeypatch.setenv("TANDEM_API_KEY", "secret")
    arguments = ("arena", prompts, "--model", "a", "--model", "b", "-o", tmp_path / "x")
    for more in (
        (),
        ("--judge-url", "http://j"),
        ("--judge-url", "http://j", "--judge-api-key", "k"),
    ):
        assert invoke(*arguments, *more)[0] == 0
    assert [judge.api_key for _, judge in seen] == ["secret", None, "k"]
    assert [address.api_key for address, _ in seen] == ["secret"] * 3
    assert seen[1][1].url == "http://j"


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ('{"reason": "r", "winner": "1"}', "first"),
        ('{"reason": "r", "winner": "tie"}', "tie"),
        ('Thinking: {"winner": "1"}? No.\n```json\n{"reason": "r", "winner": 2}\n```', "second"),
        ('{"reason": "cut o', None),
        ('{"reason": "r", "winner": "3"}', None),
        ('{"winner": ["1"]}', None),
        ("2", None),
    ],
)
def test_verdicts(text, winner):
    assert verdict_of(text)[0] == winner


async def test_a_judge_whose_server_knows_no_schemas(words):
    refusal = {"error": {"message": "response_format json_schema is not supported"}}
    words.faults[CHAT] = [httpx.Response(400, json=refusal)]
    words.reply = lambda text: 'I say "winner": "tie".'
    async with words.endpoint() as endpoint:
        judge = Judge(endpoint, "j")
        for _ in range(2):
            found = await judge.compare([{"role": "user", "content": "q"}], "x", "y")
            assert found == ("tie", 'I say "winner": "tie".')
    assert ["response_format" in body for _, body in words.bodies] == [False, False]


async def test_a_judge_sees_conversations(words):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url"}]}
    ]
    messages += [{"role": "assistant", "content": "ho"}, {"role": "user", "content": "go"}]
    async with words.endpoint() as endpoint:
        await Judge(endpoint, "j").compare(messages, "x", "y")
    content = words.bodies[0][1]["messages"][-1]["content"]
    assert "user: hi\n[image_url]\n\nassistant: ho\n\nuser: go\n\n# Answer 1\n\nx" in content


def test_a_person_votes_without_seeing_names(words, invoke, prompts, tmp_path):
    Contest(words)
    folder = tmp_path / "arena"
    arena(invoke, prompts, folder)
    runs = [load_run(path) for path in sorted(folder.glob("answers-*"))]
    matches = matches_of(runs)
    output = io.StringIO()
    keys = iter(["x", "1", "2", "t", "s", "q"])

    def vote(keys):
        with VoteFile(tmp_path / "person.jsonl", {"judge": "person"}) as file:
            console = Console(file=output, width=80)
            vote_in_terminal(matches, file, console, seed=1, ask=lambda question: next(keys))
            return file.votes

    votes = vote(keys)
    assert [one.winner for one in votes] == ["first", "second", "tie"]
    assert "5 of 18" in output.getvalue()
    # Those that were skipped and those without a vote are asked later.
    votes = vote(iter(["t"] * 15))
    pairs = {(one.prompt, frozenset((one.first, one.second))) for one in votes}
    assert len(votes) == len(pairs) == 18
    assert {one.voter for one in votes} == {"person"}


def test_answers_cannot_control_the_terminal(tmp_path):
    output = io.StringIO()
    match = Match(Item("1", prompt="q[bold]\x1b[2J"), "a", "b", "x\x9b\x07\ty\n", "\x1b]0;t")
    with VoteFile(tmp_path / "v.jsonl", {}) as file:
        vote_in_terminal([match], file, Console(file=output), seed=1, ask=lambda question: "q")
    shown = output.getvalue()
    assert "q[bold]" in shown and not {"\x1b", "\x07", "\x9b"} & set(shown)
