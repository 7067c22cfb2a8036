"""`python -m tools.quantization_table.hqq_folder SOURCE TARGET BITS`: packs the linear layers of a
model folder's blocks in HQQ's format.

HQQ looks at no text, so its files show what bits alone cost. It needs the package hqq, in any
version of Python that has it; transformers 5 cannot write this format.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from safetensors.torch import load_file, save_file

GROUP_SIZE = 64


def main(source: Path, target: Path, bits: int) -> None:
    shutil.copytree(source, target)
    file = target / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        layer = name.removesuffix(".weight")
        packed = _packed(tensors.pop(name), bits)
        tensors |= {f"{layer}.{kind}": one.contiguous() for kind, one in packed.items()}
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "hqq"}
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def _packed(weight: torch.Tensor, bits: int) -> dict[str, torch.Tensor]:
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    config = BaseQuantizeConfig(nbits=bits, group_size=GROUP_SIZE, axis=1)
    made = HQQLinear(linear, config, compute_dtype=weight.dtype, device="cpu")
    tensors: dict[str, torch.Tensor] = made.state_dict()
    return tensors


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
