"""Writes LoRA adapters with random numbers, as PEFT saves them: the shapes decide the speed.

    python -m loadtest.random_adapters FOLDER --base model.safetensors --layers q_proj,v_proj

FOLDER/a00, a01, … are adapters of all matrices of the base, a text model or a denoiser, whose name
ends with one of the layers'. Numbers are normal, and small enough that answers stay much like the
base's. The same seed gives the same bytes.
"""

import argparse
import json
import struct
from collections.abc import Sequence
from pathlib import Path

_PREFIX = "base_model.model."
_SIZE = struct.Struct("<Q")
_UPDATE_DEVIATION = 0.002
"""Standard deviation of an element of `B · A`; a model's weights have ten times that or more."""


def layer_shapes(base: Path, layers: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Outputs and inputs by the layer's name, from the header of a safetensors file.

    Raises ValueError when the file has no such layer.
    """
    with base.open("rb") as file:
        (length,) = _SIZE.unpack(file.read(_SIZE.size))
        header = json.loads(file.read(length))
    shapes = {}
    for key, entry in header.items():
        name = key.removesuffix(".weight")
        is_wanted = any(name == layer or name.endswith(f".{layer}") for layer in layers)
        if key != name and is_wanted and len(entry["shape"]) == 2:
            shapes[name] = (entry["shape"][0], entry["shape"][1])
    if not shapes:
        raise ValueError(f"{base.name} has no layers called {', '.join(layers)}")
    return shapes


def write_random_adapter(
    folder: Path, shapes: dict[str, tuple[int, int]], rank: int, seed: int
) -> None:
    """Write `adapter_model.safetensors` (fp16) and `adapter_config.json`."""
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    tensors = {}
    for name, (outputs, inputs) in shapes.items():
        sides = {
            # Rows of length 1; an element of the update is a sum of `rank` products.
            "lora_A": ((rank, inputs), inputs**-0.5),
            "lora_B": ((outputs, rank), _UPDATE_DEVIATION * (inputs / rank) ** 0.5),
        }
        for side, (shape, deviation) in sides.items():
            numbers = rng.standard_normal(shape, np.float32) * np.float32(deviation)
            tensors[f"{_PREFIX}{name}.{side}.weight"] = numbers.astype(np.float16)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name in shapes}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.random_adapters")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="the model's safetensors file")
    parser.add_argument(
        "--layers", required=True, help="ends of the layers' names, separated by commas"
    )
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shapes = layer_shapes(options.base, options.layers.split(","))
    for number in range(options.count):
        folder = options.folder / f"a{number:02}"
        write_random_adapter(folder, shapes, options.rank, options.seed + number)


if __name__ == "__main__":
    main()
