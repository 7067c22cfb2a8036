"""Makes a whole measurement: finds the models, divides the text, loads and scores each passage."""

from dataclasses import replace
from typing import Any

from engine.commands.quality.scored_model import FoundModel, ScoredModel, find_model, load_model
from engine.commands.quality.scoring import passage_scores
from engine.contract.host import Tell
from engine.contract.orders import MeasuringOrder
from engine.errors import InvalidParameter
from engine.processes.telling_host import TellingHost
from engine.text.scores.passages import Passage, ScoredFile
from engine.text.scores.sums import text_report
from engine.weights.quality_record import MeasuredQuality, save_quality


def measure(order: MeasuringOrder, tell: Tell) -> dict[str, Any]:
    """The report, as `tandem perplexity --json` prints it.

    Raises:
        EngineError: the measurement is not possible; the message says why.
    """
    file = ScoredFile(path=order.text, context=order.context, passages=order.passages)
    text = file.read()
    host = TellingHost(tell)
    found = find_model(order.model, order.config, host, order.cache_dir, order.offline)
    passages = found.passages(text, file)
    original: ScoredModel | None = None
    original_name = ""
    if order.against is not None:
        # The original is kept plain, which is closest to how it was trained.
        config = replace(order.config, quantization="none", kv_cache_dtype="auto")
        other = find_model(order.against, config, host, order.cache_dir, order.offline)
        original_name = other.checkpoint.name
        _check_alike(found, other, passages, other.passages(text, file))
        original = load_model(other, config, host, order.context)
    model = load_model(found, order.config, host, order.context)
    report = text_report(
        passages, lambda passage: passage_scores(model, passage.token_ids, original), tell
    )
    if order.save and original is not None:
        measured = MeasuredQuality.of_report(
            report, kept=model.kept, against=original_name, text=order.text.name
        )
        report["saved_to"] = save_quality(found.checkpoint, measured).name
    return {
        **report,
        "weight_bytes": model.weight_bytes,
        "tokens_per_s": len(passages) * order.context / model.seconds,
    }


def _check_alike(
    found: FoundModel, other: FoundModel, passages: list[Passage], others: list[Passage]
) -> None:
    """Check that both models have the same tokens, as only then distributions can be compared.

    Raises:
        InvalidParameter: the tokens differ.
    """
    sizes = found.config.vocab_size, other.config.vocab_size
    if sizes[0] != sizes[1]:
        raise InvalidParameter(
            f"the model knows {sizes[0]} tokens and the original {sizes[1]}; give the same model "
            f"in another format"
        )
    if others != passages:
        raise InvalidParameter(
            "the two models divide the text into different tokens; give the same model in another "
            "format"
        )
