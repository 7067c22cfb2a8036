"""The work of `tandem eval contamination`."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

from evaluation.commands import ServerAddress, Shown
from evaluation.contamination.item_text import texts_of
from evaluation.contamination.methods import METHODS, Knobs, ModelScores
from evaluation.contamination.ngrams import corpus_words, shares_in_corpus
from evaluation.contamination.report import contamination_table, item_finding, order_finding
from evaluation.problem import EvaluationProblem
from evaluation.report import Report
from evaluation.task import Task


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What is asked about whom.

    Attributes:
        base: items that the model has not seen, or None.
        paired: whether those are paraphrases of the items with the same ids.
        methods: names; all that can be used if there are none.
        model: empty for the server's first.
        corpus: text files and folders.
    """

    task: Task
    base: Task | None
    paired: bool
    methods: tuple[str, ...]
    model: str
    corpus: tuple[Path, ...]
    knobs: Knobs

    def resolved(self) -> "Inquiry":
        """With methods, and paraphrases in the order of the items.

        Raises:
            EvaluationProblem: it cannot be carried out.
        """
        usual = [name for name in METHODS if name != "ngrams" or self.corpus]
        methods = self.methods or tuple(usual)
        for name in methods:
            if name not in METHODS:
                raise EvaluationProblem(
                    f"there is no method {name!r}; the methods are {', '.join(METHODS)}"
                )
        if ("ngrams" in methods) != bool(self.corpus):
            raise EvaluationProblem("--method ngrams and --corpus FILE belong together; give both")
        base = self.base
        if base is not None and self.paired:
            base = _in_order_of(self.task, base)
        return replace(self, methods=methods, base=base)


def contamination_command(address: ServerAddress, inquiry: Inquiry, shown: Shown) -> int:
    """Ask, test, show."""
    report = asyncio.run(contamination_report(address, inquiry.resolved()))
    shown.show(report, contamination_table(report))
    return 0


async def contamination_report(address: ServerAddress, inquiry: Inquiry) -> Report:
    """What each method finds."""
    asks = any(method != "ngrams" for method in inquiry.methods)
    async with address.endpoint() as endpoint:
        model = inquiry.model or (await endpoint.first_model() if asks else "no model")
        scores = ModelScores(endpoint, model, inquiry.knobs, address.concurrency)
        found = {method: await _finding(method, inquiry, scores) for method in inquiry.methods}
    return {"task": inquiry.task.name, "model": model, "methods": found}


async def _finding(method: str, inquiry: Inquiry, scores: ModelScores) -> Report:
    knobs, base = inquiry.knobs, inquiry.base
    texts = texts_of(inquiry.task)
    base_texts = [] if base is None else texts_of(base)
    if method == "order":
        preferred = await scores.order(texts)
        base_preferred = await scores.order(base_texts) if base_texts else None
        return order_finding(preferred, base_preferred, seed=knobs.seed)
    every = [*texts, *base_texts]
    if method == "ngrams":
        values = shares_in_corpus(every, corpus_words(inquiry.corpus), knobs.ngram)
    elif method == "min_k":
        values = await scores.min_k(every)
    else:
        values = await scores.completion(every)
    own, others = values[: len(texts)], values[len(texts) :]
    return item_finding(
        method, inquiry.task, own, base, others, paired=inquiry.paired, seed=knobs.seed
    )


def _in_order_of(task: Task, paraphrases: Task) -> Task:
    """The paraphrase of each item."""
    by_id = {item.id: item for item in paraphrases.items}
    missing = [item.id for item in task.items if item.id not in by_id]
    if missing:
        raise EvaluationProblem(
            f"{paraphrases.path}: the item {missing[0]!r} has no paraphrase; give each the id of "
            "its item"
        )
    return replace(paraphrases, items=tuple(by_id[item.id] for item in task.items))
