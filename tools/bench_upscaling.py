"""Times upscalers beside a plain PyTorch network and the ncnn package: the same weights and tile,
in turns, medians.

    python -m tools.bench_upscaling realesrgan-x4plus --tile 128 --rounds 5
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.upscaling.loading import load_network, on_device
from engine.upscaling.precision import served_network
from engine.weights.source import Checkpoint, resolve_source

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a name or file as for --model; ncnn's for a full comparison")
    parser.add_argument("--tile", type=int, default=128, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache-dir", type=Path, default=Path.home() / ".cache" / "tandem")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    checkpoint = resolve_source(args.model, cache_dir=args.cache_dir, on_progress=lambda *_: None)
    plain = load_network(checkpoint)
    ours, dtype = served_network(load_network(checkpoint), "auto", CPU)
    tile = torch.rand(1, 3, args.tile, args.tile)
    runs = {
        "plain PyTorch": torch_run(plain, tile),
        f"Tandem ({dtype})": torch_run(
            on_device(ours, CPU), tile.contiguous(memory_format=torch.channels_last)
        ),
    }
    if checkpoint.kind == "ncnn":
        runs["ncnn"] = ncnn_run(checkpoint, tile, args.threads)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(args.rounds + 1):
        for name, run in runs.items():
            started_s, started_cpu_s = time.perf_counter(), time.process_time()
            run()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started_s)
                cpu_seconds[name].append(time.process_time() - started_cpu_s)
    megapixels = (args.tile * plain.facts.scale) ** 2 / 1e6
    for name, found in seconds.items():
        median, cpu = statistics.median(found), statistics.median(cpu_seconds[name])
        print(
            f"{name:20} {megapixels / median:8.3f} MP/s  {1e3 * median:8.1f} ms  "
            f"processor time {1e3 * cpu:8.1f} ms"
        )


def torch_run(network: Any, tile: torch.Tensor) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            return network(tile)

    return run


def ncnn_run(checkpoint: Checkpoint, tile: torch.Tensor, threads: int) -> Callable[[], Any]:
    import ncnn

    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = threads
    net.load_param(str(checkpoint.path))
    net.load_model(str(checkpoint.path.with_suffix(".bin")))
    last = checkpoint.path.read_text().split("\n")[-2].split()
    result = last[4 + int(last[2])]
    given = ncnn.Mat(np.ascontiguousarray(tile[0].numpy())).clone()

    def run() -> Any:
        extractor = net.create_extractor()
        extractor.input("data", given)
        return extractor.extract(result)

    return run


if __name__ == "__main__":
    main()
