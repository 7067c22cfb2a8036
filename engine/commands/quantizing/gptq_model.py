"""GPTQ and AWQ, made by GPTQModel, which fits weights to the activations of a text.

Papers: Frantar et al. 2022, arXiv:2210.17323; Lin et al. 2023, arXiv:2306.00978.
"""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from engine.commands.quantizing.plain_folder import block_matrices, group_size, plain_config
from engine.contract.host import Tell
from engine.errors import InvalidParameter, ModelLoadError
from engine.text.tokenizer import load_tokenizer
from engine.weights.source import Checkpoint

SAMPLE_TOKENS = 512
NUM_SAMPLES = {"gptq": 128, "awq": 32}
"""The most samples; fewer where the text is shorter. AWQ reads the samples again for every scale
that it tries, and needs fewer (its paper, section 5.3)."""
_LEAST_SAMPLES = 8
_LEAST_WORKERS = 2
"""GPTQModel does not start with fewer threads on the CPU, and takes one per two cores."""


def write_with_gptqmodel(
    checkpoint: Checkpoint,
    folder: Path,
    tell: Tell,
    *,
    method: str,
    bits: int,
    wanted_group: int | None,
    calibration: Path,
) -> dict[str, Any]:
    """Make `folder`. GPTQModel shows its own progress on standard error.

    Raises:
        ModelLoadError: GPTQModel is not installed, or fails.
        UnsupportedFeature: the checkpoint is not a folder with plain weights.
        InvalidParameter: the text is too short, or `wanted_group` does not divide the rows.
    """
    plain_config(checkpoint)
    size = group_size(wanted_group, block_matrices(checkpoint).values())
    samples = calibration_samples(checkpoint.path, calibration, NUM_SAMPLES[method])
    library = _library(method)
    tell({"phase": "quantising", "progress": None, "detail": f"{method}: {len(samples)} samples"})
    source, made = checkpoint.path.absolute(), folder.absolute()
    try:
        # GPTQModel leaves logs in its working directory.
        with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
            model = library.GPTQModel.load(str(source), _config(library, method, bits, size))
            model.quantize(samples, batch_size=1, backend=_backend(library, method))
            model.save(str(made))
    except Exception as error:  # the library may raise anything
        raise ModelLoadError(
            f"GPTQModel could not quantise {checkpoint.name}: {type(error).__name__}: {error}"
        ) from error
    return {"bits": bits, "group_size": size, "samples": len(samples)}


def calibration_samples(model: Path, calibration: Path, most: int) -> list[dict[str, list[int]]]:
    """Return at most `most` pieces of the text, of `SAMPLE_TOKENS` each.

    Raises:
        InvalidParameter: the text cannot be read, or is too short.
    """
    try:
        text = calibration.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InvalidParameter(f"the calibration text cannot be read: {reason}") from None
    token_ids = load_tokenizer(model).encode(text, add_special_tokens=False)
    count = min(most, len(token_ids) // SAMPLE_TOKENS)
    if count < _LEAST_SAMPLES:
        raise InvalidParameter(
            f"the calibration text has {len(token_ids)} tokens; it must have at least "
            f"{_LEAST_SAMPLES * SAMPLE_TOKENS}, of which up to {most * SAMPLE_TOKENS} are used",
            param="calibration",
        )
    # The pieces are spread evenly over the text.
    step = len(token_ids) // count
    pieces = [token_ids[at * step : at * step + SAMPLE_TOKENS] for at in range(count)]
    return [{"input_ids": piece, "attention_mask": [1] * len(piece)} for piece in pieces]


def _library(method: str) -> Any:
    if (os.cpu_count() or 1) <= _LEAST_WORKERS:
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(_LEAST_WORKERS))  # noqa: TID251 (theirs)
    try:
        import gptqmodel
    except ImportError as error:
        raise ModelLoadError(
            f"{method} needs GPTQModel, which is not installed; run pip install "
            f"'tandem-server[quantize]'"
        ) from error
    return gptqmodel


def _config(library: Any, method: str, bits: int, size: int) -> Any:
    if method == "gptq":
        return library.QuantizeConfig(bits=bits, group_size=size)
    # AutoAWQ writes zero points, and all readers of AWQ expect them.
    return library.quantization.AWQConfig(bits=bits, group_size=size, sym=False)


def _backend(library: Any, method: str) -> Any:
    """Return the backend whose layers GPTQModel packs. Its default for AWQ is a CUDA extension,
    which writes the same as PyTorch's and needs an NVIDIA GPU."""
    return library.BACKEND.AUTO if method == "gptq" else library.BACKEND.AWQ_TORCH
