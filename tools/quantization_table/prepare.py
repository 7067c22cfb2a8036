"""Makes the files of all formats, except those that exist already."""

import os
import subprocess
import sys
from pathlib import Path

from engine.weights.source import resolve_source
from tools.quantization_table.formats import (
    FITTED,
    GGUF_TYPES,
    HQQ_BITS,
    IMPORTANCE_TYPES,
    PLAIN,
    Model,
)

CACHE = Path("~/.cache/tandem").expanduser()
FOLDER = "hf"
"""The original as a folder, which GPTQModel reads."""


def prepare(folder: Path, model: Model, llama: Path, gptq_python: str | None, text: Path) -> None:
    """Fetch the model and make its other formats.

    Args:
        llama: where llama.cpp's programs are.
        gptq_python: a Python that has GPTQModel and hqq; without one, no GPTQ, AWQ and HQQ files
            are made.
        text: GPTQ, AWQ and IQ types are fitted to its second half; perplexity is measured on its
            beginning.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = text.read_text()
    calibration = folder / "calibration.txt"
    calibration.write_text(words[words.index("\n", len(words) // 2) :])
    plain = model.path(folder, PLAIN)
    if not plain.exists():
        assert model.ref is not None, f"{plain} is missing"
        source = resolve_source(
            model.ref, cache_dir=CACHE, offline=False, on_progress=lambda fraction, line: None
        )
        _quantize(llama, source.path, plain, "BF16")
    for name in GGUF_TYPES:
        path = model.path(folder, f"{name.lower()}.gguf")
        if not path.exists():
            _quantize(llama, plain, path, name)
    importance = model.path(folder, "importance.gguf")
    if not importance.exists():
        _weigh(llama, plain, importance, calibration)
    for name in IMPORTANCE_TYPES:
        path = model.path(folder, f"{name.lower()}.gguf")
        if not path.exists():
            _quantize(llama, plain, path, name, "--imatrix", str(importance))
    whole = model.path(folder, FOLDER)
    if not whole.exists():
        _write_folder(plain, whole)
    if gptq_python is not None:
        for bits in HQQ_BITS:
            _write_hqq(whole, model.path(folder, f"hqq-{bits}"), gptq_python, bits)
        _fit(folder, model, gptq_python, calibration)


def run_llama(folder: Path, program: str, *arguments: str) -> str:
    """Run one of llama.cpp's programs and return its output.

    Raises:
        RuntimeError: the program fails.
    """
    done = subprocess.run(
        [folder / program, *arguments],
        env=os.environ | {"LD_LIBRARY_PATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        raise RuntimeError(f"{program} failed: {done.stdout[-2000:]}")
    return done.stdout


def _quantize(llama: Path, source: Path, path: Path, name: str, *options: str) -> None:
    print(f"{path.name} ...", flush=True)
    part = path.with_suffix(".part")
    run_llama(llama, "llama-quantize", "--allow-requantize", *options, str(source), str(part), name)
    part.rename(path)


def _weigh(llama: Path, source: Path, path: Path, text: Path) -> None:
    """Write how much each column of the matrices matters for the text."""
    print(f"{path.name} ...", flush=True)
    part = path.with_suffix(".part.gguf")
    run_llama(llama, "llama-imatrix", "-m", str(source), "-f", str(text), "-o", str(part))
    part.rename(path)


def _write_folder(plain: Path, folder: Path) -> None:
    """Write a folder with the numbers of the GGUF file."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    print(f"{folder.name} ...", flush=True)
    source = {"pretrained_model_name_or_path": plain.parent, "gguf_file": plain.name}
    part = folder.with_suffix(".part")
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    # transformers cannot save a model that it has read from a GGUF file.
    written = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(**source))
    written.to(torch.bfloat16).load_state_dict(read.state_dict())
    written.save_pretrained(part)
    AutoTokenizer.from_pretrained(**source).save_pretrained(part)
    part.rename(folder)


def _write_hqq(source: Path, path: Path, python: str, bits: int) -> None:
    if path.exists():
        return
    print(f"{path.name} ...", flush=True)
    part = path.with_suffix(".part")
    program = "tools.quantization_table.hqq_folder"
    subprocess.run([python, "-m", program, source, part, str(bits)], check=True)
    part.rename(path)


def _fit(folder: Path, model: Model, python: str, calibration: Path) -> None:
    for ending, (method, bits) in FITTED.items():
        path = model.path(folder, ending)
        if path.exists():
            continue
        print(f"{path.name} ...", flush=True)
        given = {
            "--model": model.path(folder, FOLDER),
            "--method": method,
            "--bits": bits,
            "--calibration": calibration,
            "--output": path,
        }
        words_of = [str(word) for pair in given.items() for word in pair]
        done = subprocess.run([python, "-m", "server", "quantize", *words_of])
        if done.returncode != 0:
            print(f"{path.name} was not made", file=sys.stderr)
