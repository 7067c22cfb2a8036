"""`tandem eval`: scores of models, comparisons of two, and votes. The options; the work is in
`evaluation`, which is imported only once a command runs."""

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec

import typer

from server.settings import load_client_settings
from server.settings.problem import SettingsProblem

if TYPE_CHECKING:
    from evaluation.commands import ServerAddress, Shown

P = ParamSpec("P")

app = typer.Typer(
    help="Evaluate models on your own questions, over HTTP on any OpenAI-compatible server.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Url = Annotated[str | None, typer.Option(help="URL of the server. [TANDEM_URL]")]
ApiKey = Annotated[str | None, typer.Option(help="Key to send. [TANDEM_API_KEY]", metavar="KEY")]
Concurrency = Annotated[int, typer.Option(min=1, help="Number of concurrent requests.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds to wait for an answer.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 is greedy.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Maximum length of an answer, in tokens.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampled answers repeatable.")]
System = Annotated[str | None, typer.Option(help="System message before each question.")]
Body = Annotated[
    str | None,
    typer.Option(help="Additional fields of each request, as a JSON object.", metavar="JSON"),
]
Scores = Annotated[
    list[str] | None,
    typer.Option(
        help="Score to compute; repeatable: exact_match, exact_match_squad, contains, f1, rouge1, "
        "rouge2, rougeL, bleu, chrf, or multiple_choice, multiple_choice_per_byte. Default: "
        "exact_match, or both of multiple_choice if all items have choices.",
        metavar="NAME",
    ),
]
Extract = Annotated[
    str | None,
    typer.Option(
        help="Score only the last match of this regular expression, or of its first group.",
        metavar="REGEX",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Plot = Annotated[
    Path | None,
    typer.Option(help="Write a plot to this file (.svg, .png or .pdf).", metavar="FILE"),
]
ResamplingSeed = Annotated[int, typer.Option(help="Seed of the resampling for intervals.", min=0)]


def _told_in_a_line(command: Callable[P, int]) -> Callable[P, None]:
    """Decorate a command that returns its exit code: a problem becomes one line and code 2."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from evaluation.problem import EvaluationProblem

        try:
            raise typer.Exit(command(*args, **kwargs))
        except (EvaluationProblem, SettingsProblem) as problem:
            typer.echo(f"tandem: {problem}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("stopped; the same command goes on from here", err=True)
            raise typer.Exit(130) from None

    return run


@app.command("run", short_help="Run all questions of a task on a model and score the answers.")
@_told_in_a_line
def run(
    task: Annotated[Path, typer.Argument(help="JSONL file of questions.", metavar="TASK")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="File for the answers. If it already has some, the run continues.",
        ),
    ],
    url: Url = None,
    api_key: ApiKey = None,
    model: Annotated[str | None, typer.Option(help="Model id. Default: the first.")] = None,
    score: Scores = None,
    extract: Extract = None,
    endpoint: Annotated[
        Literal["chat", "completions"] | None,
        typer.Option(
            help="Whether a prompt is a user message or a text to continue. Default: chat, or "
            "completions for items with choices.",
        ),
    ] = None,
    system: System = None,
    temperature: Temperature = 0.0,
    max_tokens: MaxTokens = 256,
    seed: Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends an answer.")] = None,
    body: Body = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only the first items.")] = None,
    repeats: Annotated[
        int,
        typer.Option(
            min=1, help="How often each item is asked, with different seeds, as one group."
        ),
    ] = 1,
    concurrency: Concurrency = 8,
    timeout: Timeout = 600.0,
    as_json: Json = False,
    plot: Plot = None,
    resampling_seed: ResamplingSeed = 0,
) -> int:
    """Ask a model all questions of a task, write its answers to a file and show its scores. An
    interrupted run continues where it ended. Exit code 1: the server refused some items."""
    from evaluation.asking import Asking
    from evaluation.commands import run_command
    from evaluation.scores import asked_by, chosen_scores
    from evaluation.task import load_task

    address = _address(url, api_key, timeout, concurrency)
    items = load_task(task).first(limit).repeated(repeats)
    asked = asked_by(chosen_scores(score or ()), items.items)
    has_prompts = all(item.prompt is not None for item in items.items)
    continues = asked == "choices" and has_prompts and system is None
    asking = Asking(
        model=model or "",
        asked=asked,
        endpoint=endpoint or ("completions" if continues else "chat"),
        system=system,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        stop=tuple(stop or ()),
        body=_fields(body),
    )
    return run_command(
        address, items, asking, output, _shown(score, extract, as_json, plot, resampling_seed)
    )


@app.command("report", short_help="Rescore runs, with other scores or side by side.")
@_told_in_a_line
def report(
    runs: Annotated[list[Path], typer.Argument(help="Files of `tandem eval run`.", metavar="RUN")],
    score: Scores = None,
    extract: Extract = None,
    as_json: Json = False,
    plot: Plot = None,
    resampling_seed: ResamplingSeed = 0,
) -> int:
    """Show the scores of runs that were made before. Asks no model."""
    from evaluation.commands import report_command

    return report_command(runs, _shown(score, extract, as_json, plot, resampling_seed))


@app.command("compare", short_help="Compare two runs of one task, item by item.")
@_told_in_a_line
def compare(
    first: Annotated[Path, typer.Argument(help="File of `tandem eval run`.", metavar="A")],
    second: Annotated[Path, typer.Argument(help="Another one.", metavar="B")],
    score: Scores = None,
    extract: Extract = None,
    as_json: Json = False,
    resampling_seed: ResamplingSeed = 0,
) -> int:
    """Show how much better the second of two runs is, with an interval, a paired test, and how many
    items would be needed to show such a difference. Asks no model."""
    from evaluation.commands import compare_command

    shown = _shown(score, extract, as_json, None, resampling_seed)
    return compare_command(first, second, shown)


@app.command("arena", short_help="Have models answer prompts, collect votes, and rate the models.")
@_told_in_a_line
def arena(
    prompts: Annotated[
        Path, typer.Argument(help="JSONL file of prompts, as a task.", metavar="PROMPTS")
    ],
    model: Annotated[
        list[str], typer.Option(help="A model that answers. Repeatable; two or more.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder for answers and votes; existing ones are kept."
        ),
    ],
    judge: Annotated[
        str | None, typer.Option(help="A model that votes. Without one, you vote here.")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    judge_url: Annotated[
        str | None, typer.Option(help="URL of the judge's server. Default: --url.")
    ] = None,
    judge_api_key: Annotated[
        str | None, typer.Option(help="Key for the judge's server.", metavar="KEY")
    ] = None,
    system: System = None,
    temperature: Temperature = 0.0,
    max_tokens: MaxTokens = 512,
    seed: Seed = None,
    body: Body = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first prompts.")] = None,
    concurrency: Concurrency = 8,
    timeout: Timeout = 600.0,
    as_json: Json = False,
    plot: Plot = None,
    resampling_seed: ResamplingSeed = 0,
) -> int:
    """Have models answer prompts, collect votes on pairs of their answers, and rate the models. A
    judge model sees each pair in both orders; without one, you vote without seeing names."""
    from evaluation.arena.commands import Contest, arena_command
    from evaluation.asking import Asking
    from evaluation.task import load_task

    address = judge_address = _address(url, api_key, timeout, concurrency)
    if judge_url is not None:
        # The key of one server is not sent to another.
        judge_address = replace(address, url=_checked(judge_url), api_key=judge_api_key)
    contest = Contest(
        task=load_task(prompts).first(limit),
        models=tuple(model),
        asking=Asking(
            model="",
            system=system,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            body=_fields(body),
        ),
        address=address,
        judge=judge,
        judge_address=judge_address,
    )
    return arena_command(contest, output, _shown(None, None, as_json, plot, resampling_seed))


@app.command("ratings", short_help="Rate models by votes collected earlier.")
@_told_in_a_line
def ratings(
    votes: Annotated[
        list[Path],
        typer.Argument(
            help="Files of votes: of `tandem eval arena`, JSONL with LMArena's fields, or "
            "conversations exported from the playground.",
            metavar="VOTES",
        ),
    ],
    as_json: Json = False,
    plot: Plot = None,
    resampling_seed: ResamplingSeed = 0,
) -> int:
    """Show the ratings that votes lead to. Asks no model."""
    from evaluation.arena.commands import ratings_command

    return ratings_command(votes, _shown(None, None, as_json, plot, resampling_seed))


@app.command("contamination", short_help="Test whether a model saw a task in training.")
@_told_in_a_line
def contamination(
    task: Annotated[Path, typer.Argument(help="JSONL file of questions.", metavar="TASK")],
    unseen: Annotated[
        Path | None,
        typer.Option(help="Task of the same kind that no model can have seen.", metavar="FILE"),
    ] = None,
    paraphrases: Annotated[
        Path | None,
        typer.Option(
            help="Instead: the same items in other words, matched by `id`.", metavar="FILE"
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="min_k, order, completion or ngrams; repeatable. Default: all; ngrams needs "
            "--corpus.",
            metavar="NAME",
        ),
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(help="Text file or folder for ngrams; repeatable.", metavar="PATH"),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    model: Annotated[str | None, typer.Option(help="Model id. Default: the first.")] = None,
    min_k: Annotated[
        float, typer.Option(min=1, max=100, help="Per cent of a text's tokens that count.")
    ] = 20.0,
    ngram: Annotated[int, typer.Option(min=1, help="Words in a row that ngrams looks for.")] = 8,
    orders: Annotated[int, typer.Option(min=1, help="Random orders of each stretch.")] = 20,
    stretch_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of neighbouring items that are shuffled.")
    ] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first items.")] = None,
    concurrency: Concurrency = 8,
    timeout: Timeout = 600.0,
    as_json: Json = False,
    resampling_seed: ResamplingSeed = 0,
) -> int:
    """Test whether a model saw the items of a task in training, against items that it cannot have
    seen. What each method cannot say is printed with its result."""
    from evaluation.contamination.commands import Inquiry, contamination_command
    from evaluation.contamination.methods import Knobs
    from evaluation.problem import EvaluationProblem
    from evaluation.task import load_task

    if unseen is not None and paraphrases is not None:
        raise EvaluationProblem("give either --unseen or --paraphrases")
    base = unseen or paraphrases
    inquiry = Inquiry(
        task=load_task(task).first(limit),
        base=None if base is None else load_task(base),
        paired=paraphrases is not None,
        methods=tuple(method or ()),
        model=model or "",
        corpus=tuple(corpus or ()),
        knobs=Knobs(min_k, ngram, orders, stretch_tokens, resampling_seed),
    )
    address = _address(url, api_key, timeout, concurrency)
    return contamination_command(address, inquiry, _shown(None, None, as_json, None, 0))


def _checked(url: str) -> str:
    return load_client_settings({"url": url}).url


def _address(
    url: str | None, api_key: str | None, timeout_s: float, concurrency: int
) -> "ServerAddress":
    from evaluation.commands import ServerAddress

    settings = load_client_settings({"url": url, "api_key": api_key})
    key = None if settings.api_key is None else settings.api_key.get_secret_value()
    return ServerAddress(settings.url, key, timeout_s, concurrency)


def _shown(
    scores: list[str] | None, extract: str | None, as_json: bool, plot: Path | None, seed: int
) -> "Shown":
    from evaluation.commands import Shown

    return Shown(tuple(scores or ()), extract, as_json, plot, seed)


def _fields(body: str | None) -> dict[str, Any]:
    """The fields that an option gives as JSON."""
    from evaluation.problem import EvaluationProblem

    try:
        fields = json.loads(body or "{}")
    except ValueError as error:
        raise EvaluationProblem(f"--body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise EvaluationProblem('--body must be a JSON object, such as {"top_p": 0.9}')
    return fields
