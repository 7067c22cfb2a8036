"""Compares upscalers with plain PyTorch and the ncnn package on the same weights and tile.

python -m tools.bench_upscaling --output docs/benchmarks/raw/upscaling-native.json
loadtest/peers/held.sh x86-64-v3 python -m tools.bench_upscaling --cpu-isa x86-64-v3
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.runtime.threads import prepare_process

# Set before torch is imported, as in a worker.
prepare_process()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from engine.upscaling.loading import load_network, on_device  # noqa: E402
from engine.upscaling.precision import served_network  # noqa: E402
from engine.weights.source import Checkpoint, resolve_source  # noqa: E402
from kernels import isa  # noqa: E402
from loadtest.machine import provenance  # noqa: E402
from loadtest.results import TURNS_FORMAT, save_result  # noqa: E402
from loadtest.turns import Turn, take_turns, turns_section  # noqa: E402

CPU = torch.device("cpu")
TILES = {"realesr-animevideov3": 128, "realesrgan-x4plus-anime": 96, "realesrgan-x4plus": 64}
"""Side of the tile in pixels, chosen so that the slowest program takes about a second."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "models", nargs="*", default=list(TILES), help="names or files, as for --model"
    )
    parser.add_argument("--tile", type=int, help="side in pixels; default: by model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, torch.get_num_threads()])
    parser.add_argument("--cache-dir", type=Path, default=Path.home() / ".cache" / "tandem")
    parser.add_argument("--output", type=Path)
    isa.add_argument(parser)
    args = parser.parse_args()
    isa.choose(args.cpu_isa)
    document: dict[str, Any] = {
        "format": TURNS_FORMAT,
        **provenance("Enlarging one tile", "tools.bench_upscaling"),
        "rung": isa.chosen(),
        "rounds": args.rounds,
        "tasks": [],
    }
    for model in args.models:
        side = args.tile or TILES.get(model, 96)
        for threads in dict.fromkeys(args.threads):
            torch.set_num_threads(threads)
            turns = turns_of(model, side, threads, args.cache_dir)
            shares = take_turns(turns, args.rounds)
            name = f"`{model}`, {side} px, {threads} thread{'s' if threads > 1 else ''}"
            runs = [turn.to_json() for turn in turns]
            document["tasks"].append({"name": name, "runs": runs, "cpu": shares})
    print(turns_section(document))
    if args.output is not None:
        save_result(document, args.output)


def turns_of(model: str, side: int, threads: int, cache_dir: Path) -> list[Turn]:
    """Tandem's upscaler as it is served, PyTorch's, and ncnn's for weights in its format."""
    checkpoint = resolve_source(model, cache_dir=cache_dir, on_progress=lambda *_: None)
    plain = load_network(checkpoint)
    ours, dtype = served_network(load_network(checkpoint), "auto", CPU)
    tile = torch.rand(1, 3, side, side)
    last = tile.contiguous(memory_format=torch.channels_last)
    turns = [
        Turn(f"Tandem ({dtype})", torch_run(on_device(ours, CPU), last)),
        Turn("plain PyTorch", torch_run(plain, tile)),
    ]
    if checkpoint.layout == "ncnn":
        turns.append(Turn("ncnn", ncnn_run(checkpoint, tile, threads)))
    return turns


def torch_run(network: Any, tile: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            network(tile)

    return run


def ncnn_run(checkpoint: Checkpoint, tile: torch.Tensor, threads: int) -> Callable[[], None]:
    import ncnn

    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = threads
    net.load_param(str(checkpoint.path))
    net.load_model(str(checkpoint.path.with_suffix(".bin")))
    last = checkpoint.path.read_text().split("\n")[-2].split()
    result = last[4 + int(last[2])]
    given = ncnn.Mat(np.ascontiguousarray(tile[0].numpy())).clone()

    def run() -> None:
        extractor = net.create_extractor()
        extractor.input("data", given)
        extractor.extract(result)

    return run


if __name__ == "__main__":
    main()
