"""Puts a trained base and its editing UNet together as the folder that the package ships.

    python -m tools.demo_image_model.export runs/base/pipeline \\
        --unet runs/edit/unet_edit --out engine/data/shapes

The folder is the base's with `unet_edit` beside `unet`. The index names both, the default values
for requests, and the words that the model knows.
"""

import argparse
import json
import shutil
from pathlib import Path

from tools.demo_image_model import evaluate, evaluate_edit
from tools.demo_image_model.captions import vocabulary
from tools.demo_image_model.sampling import EDIT_UNET

DEFAULTS = {
    "size": 128,
    "num_inference_steps": evaluate.STEPS,
    "guidance_scale": evaluate.GUIDANCE,
    "edit_guidance_scale": evaluate_edit.GUIDANCE,
}
"""The settings that the evaluation uses."""
MAX_BYTES = 30_000_000


def export(base: Path, edit_unet: Path, out: Path) -> None:
    """Write `out` anew.

    Raises:
        ValueError: the folder would be larger than the package allows.
    """
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(base, partial)
    shutil.rmtree(partial / EDIT_UNET, ignore_errors=True)
    shutil.copytree(edit_unet, partial / EDIT_UNET)
    index_path = partial / "model_index.json"
    index = json.loads(index_path.read_text())
    index |= {
        EDIT_UNET: ["diffusers", "UNet2DConditionModel"],
        "_defaults": DEFAULTS,
        "_vocabulary": vocabulary(),
        "_one_edit": True,
    }
    index_path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    for path in partial.glob("*/config.json"):
        _forget_origin(path)
    size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        raise ValueError(f"the folder has {size} bytes, at most {MAX_BYTES} are allowed")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def _forget_origin(config_path: Path) -> None:
    """Remove the folder that a part was loaded from, which libraries note in its configuration."""
    config = json.loads(config_path.read_text())
    config.pop("_name_or_path", None)
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="diffusers folder of the base")
    parser.add_argument("--unet", type=Path, required=True, help="folder of the editing UNet")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    export(args.base, args.unet, args.out)


if __name__ == "__main__":
    main()
