"""Measures and writes the tables of docs/quantization.md.

    python -m tools.quantization_table prepare FOLDER --text TEXT --llama BIN [--gptq-python PYTHON]
    python -m tools.quantization_table quality FOLDER --text TEXT --llama BIN
    python -m tools.quantization_table losses FOLDER
    python -m tools.quantization_table answers FOLDER
    python -m tools.quantization_table memory FOLDER
    python -m tools.quantization_table speed FOLDER
    python -m tools.quantization_table page

`prepare` makes the files with llama.cpp's programs (in BIN) and, given a Python that has it, with
GPTQModel and hqq. `quality`, `losses` (of texts in ten languages) and `answers` (to the tasks of
docs/evaluation) take minutes and may be interrupted; they continue where they stopped. `memory`
measures the models whose files are in the folder, including those of `loadtest.random_llama`. Only
`speed` needs a quiet machine. All write docs/quantization.json, and `page` writes the page from it.
"""

import argparse
import asyncio
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from loadtest.machine import provenance
from loadtest.markdown import page_with
from tools.quantization_table.formats import ALL_MODELS, MODELS, RESIDENT, Model
from tools.quantization_table.page import COMMAND, DATA, DOCS, PAGE, sections

LOGS = Path("/tmp/quantization-table")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.quantization_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    steps = parser.add_subparsers(required=True)

    def step(work: Callable[[argparse.Namespace], None], *names: str) -> argparse.ArgumentParser:
        one = steps.add_parser(work.__name__)
        one.set_defaults(work=work)
        if "folder" in names:
            one.add_argument("folder", type=Path)
        if "model" in names:
            known = [model.name for model in MODELS]
            one.add_argument("--model", action="append", choices=known, help="default: all")
        if "text" in names:
            one.add_argument("--text", type=Path, required=True)
            one.add_argument("--llama", type=Path, required=True)
        return one

    one = step(prepare, "folder", "model", "text")
    one.add_argument("--gptq-python")
    one = step(quality, "folder", "model", "text")
    one.add_argument("--passages", type=int, default=16)
    one.add_argument("--again", action="store_true", help="repeat finished measurements, too")
    for work in (losses, answers):
        one = step(work, "folder", "model")
        one.add_argument("--again", action="store_true", help="repeat finished measurements, too")
    step(memory, "folder")
    one = step(speed, "folder", "model")
    one.add_argument("--seconds", type=float, default=590.0, help="limit for the whole step")
    one.add_argument("--rounds", type=int, default=5, help="most rounds")
    one.add_argument("--only", action="append", help="names of formats; default: all")
    step(page)
    options = parser.parse_args()
    options.work(options)


def prepare(options: argparse.Namespace) -> None:
    from tools.quantization_table import prepare as making

    for model in _models(options):
        making.prepare(
            options.folder, model, options.llama, options.gptq_python, options.text.absolute()
        )


def quality(options: argparse.Namespace) -> None:
    from tools.quantization_table import quality as measuring

    known = _data().get("quality", {})
    if options.again or known.get("passages") != options.passages:
        known.clear()
    known |= {"text": options.text.name, "passages": options.passages}
    for model in _models(options):
        rows = known.setdefault("models", {}).setdefault(model.name, {})
        done = [name for name, row in rows.items() if "perplexity" in row]
        measured = measuring.measure_quality(
            options.folder, model, options.text, options.passages, done
        )
        for name, report in measured:
            rows[name] = rows.get(name, {}) | report
            print(f"{model.name} {name}: perplexity {report['perplexity']:.2f}", flush=True)
            _save("quality", known)
        for one, path in model.formats(options.folder):
            is_gguf = path.suffix == ".gguf" and not one.is_made_at_load
            if is_gguf and "llama_perplexity" not in rows[one.name]:
                rows[one.name]["llama_perplexity"] = measuring.llama_perplexity(
                    options.llama, path, options.text, options.passages
                )
                _save("quality", known)


def losses(options: argparse.Namespace) -> None:
    from tools.quantization_table import losses as measuring

    _each_format("losses", options, measuring.measure_losses)


def answers(options: argparse.Namespace) -> None:
    from tools.quantization_table import answers as asking

    _each_format("answers", options, asking.measure_answers)


def _each_format(
    name: str,
    options: argparse.Namespace,
    measure: Callable[[Path, Model, Sequence[str]], Iterable[tuple[str, dict[str, Any]]]],
) -> None:
    """Measure the formats that lack results and save each at once."""
    known = {} if options.again else _data().get(name, {})
    for model in _models(options):
        rows = known.setdefault(model.name, {})
        for format_name, found in measure(options.folder, model, list(rows)):
            rows[format_name] = found
            print(f"{model.name} {format_name}", flush=True)
            _save(name, known)


def memory(options: argparse.Namespace) -> None:
    from tools.quantization_table import quality as measuring
    from tools.quantization_table import speed as serving

    known = _data().get("memory", {})
    for model in ALL_MODELS:
        formats = [pair for pair in model.formats(options.folder) if pair[0].name in RESIDENT]
        if formats:
            found = asyncio.run(serving.measure_memory(formats, logs=LOGS, say=print))
            for one, path in formats:
                found[one.name] |= measuring.sizes(one, path)
            known[model.name] = found
            _save("memory", known)


def speed(options: argparse.Namespace) -> None:
    from tools.quantization_table import speed as serving

    models = _models(options)
    found: dict[str, Any] = {**provenance(""), "models": {}}
    del found["label"], found["command"]
    for model in models:
        print(model.title, flush=True)
        formats = model.formats(options.folder)
        found["models"][model.name] = asyncio.run(
            serving.measure_speed(
                [one for one in formats if not options.only or one[0].name in options.only],
                seconds=options.seconds / len(models),
                rounds=options.rounds,
                seed=random.SystemRandom().randrange(2**30),
                logs=LOGS,
                say=lambda line: print(line, flush=True),
            )
        )
        _save("speed", found)


def page(options: argparse.Namespace) -> None:
    from tools.quantization_table.plot import plot_losses

    data = _data()
    PAGE.write_text(page_with(PAGE.read_text(), sections(data), COMMAND))
    plot_losses(data["losses"][MODELS[0].name], DOCS / "img" / "quantization-losses.svg")


def _models(options: argparse.Namespace) -> list[Model]:
    return [model for model in MODELS if not options.model or model.name in options.model]


def _data() -> dict[str, Any]:
    return json.loads(DATA.read_text()) if DATA.exists() else {}


def _save(step: str, found: dict[str, Any]) -> None:
    """Save a step's results beside those of other steps."""
    DATA.write_text(json.dumps(_data() | {step: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
