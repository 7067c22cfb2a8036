"""Averages the UNets of two diffusers folders, one of which was trained further from the other.

    python -m tools.demo_image_model.mix runs/more/pipeline engine/data/shapes \\
        --share 0.7 --out runs/mixed

This restores what further training made worse and keeps most of what it improved (Wortsman et al.
2022, arXiv 2203.05482). Everything but the UNet comes from the first folder.
"""

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

UNET = Path("unet/diffusion_pytorch_model.safetensors")


def mix(first: Path, second: Path, share: float, out: Path) -> None:
    """Write `out`, which must not exist: `share` of the first UNet and the rest of the second,
    averaged in fp32 and kept in the first one's dtype.

    Raises:
        ValueError: the UNets differ in shape, or `share` is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share is {share}; it must be from 0 to 1")
    ours, theirs = load_file(first / UNET), load_file(second / UNET)
    shapes = [{name: tensor.shape for name, tensor in one.items()} for one in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the UNets of {first} and {second} have different tensors")
    mixed = {
        name: (share * tensor.float() + (1 - share) * theirs[name].float()).to(tensor.dtype)
        for name, tensor in ours.items()
    }
    shutil.copytree(first, out)
    save_file(mixed, out / UNET, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path, help="diffusers folder")
    parser.add_argument("second", type=Path, help="diffusers folder")
    parser.add_argument("--share", type=float, required=True, help="share of the first")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    mix(args.first, args.second, args.share, args.out)


if __name__ == "__main__":
    main()
