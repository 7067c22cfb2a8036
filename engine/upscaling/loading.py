"""Loads an upscaler's checkpoint into an engine and warms it up."""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import structlog
import torch

from engine.contract.enlarge import UpscaleModelInfo, UpscaleRequest
from engine.contract.fingerprint import fingerprint
from engine.contract.host import Host
from engine.contract.image_settings import PixelSettings
from engine.contract.pixels import Pixels
from engine.contract.resolved_config import MachineFacts
from engine.contract.status import Phase
from engine.contract.worker_settings import WantedKind
from engine.errors import UnsupportedArchitecture
from engine.runtime.device import machine_facts
from engine.runtime.fault import sizes_within_memory
from engine.runtime.operations import build_operations
from engine.runtime.threads import limit_threads
from engine.upscaling.architectures import has_own_names, network_of
from engine.upscaling.convolution import num_arranged_bytes
from engine.upscaling.ncnn.graph import NcnnGraph
from engine.upscaling.ncnn.param import read_param
from engine.upscaling.ncnn.recognition import recognised
from engine.upscaling.ncnn.weights import WeightReader
from engine.upscaling.network import Network, NetworkFacts
from engine.upscaling.picture import BORDER
from engine.upscaling.precision import served_network
from engine.upscaling.runner import TileRunner
from engine.upscaling.state_dict import read_state_dict
from engine.upscaling.work import UpscalingEngine, UpscalingLimits, UpscalingWork
from engine.weights.safetensors import read_header
from engine.weights.source import Checkpoint

MAX_SCALE = 16
MAX_TILE = 2048
EXACT_UP_TO = 24
"""The largest receptive radius in pixels of networks that are exact by default: the tiles' larger
overlap then costs a fifth more."""
FAST_OVERLAP = 32
_TILE_FLOPS = {"cpu": 6e11, "cuda": 5e13}
"""The arithmetic of a default tile: a few seconds of a small CPU, a second of a large GPU, which is
how long others wait for their turn."""
_STEP_FLOPS = {"cpu": 2e11, "cuda": 5e13}
"""The most arithmetic of tiles that share a step, which helps small tiles."""
_TILE_SHARE = 0.5
"""The share of the free memory that the largest allowed tile may take."""
_WORK_BYTES = 1 << 30
_TRIAL_SIDE = 32
_COMPLAINT = (
    "upscaling a trial image failed: {reason}; the weights are damaged: fetch the model again"
)
_TILES = (384, 256, 192, 128, 96, 64)

log = structlog.get_logger(__name__)


def is_upscaler(checkpoint: Checkpoint, wanted: WantedKind) -> bool:
    """Whether an upscaler is wanted, or the file is in a format that only upscalers have, or its
    weights have the names of our own networks.

    Raises:
        CorruptFile: the header of a safetensors file is damaged.
    """
    if wanted == "upscaler" or checkpoint.layout != "single_file":
        return True
    return has_own_names(read_header(checkpoint.path))


def load_engine(
    checkpoint: Checkpoint, model_id: str, intent: PixelSettings, host: Host
) -> tuple[UpscalingEngine, UpscaleModelInfo]:
    """Load a checkpoint and serve it as `model_id`.

    Raises:
        ModelLoadError: the checkpoint cannot be served; the message may be shown to clients.
    """
    started_s = time.monotonic()
    machine = machine_facts(intent.device)
    limit_threads(intent.num_threads or machine.num_cores)
    if machine.device == "cpu":
        build_operations(host)
    host.reserve(
        machine.device, "weights", checkpoint.path.stat().st_size, machine.free_memory_bytes
    )
    with sizes_within_memory():
        network = load_network(checkpoint)
    facts = network.facts
    if not 1 <= facts.scale <= MAX_SCALE:
        raise UnsupportedArchitecture(
            f"the network enlarges images {facts.scale} times; it must be 1 to {MAX_SCALE} times"
        )
    tiles = reserved_tiles(facts, machine, host)
    device = torch.device(machine.device)
    served, dtype = served_network(network, intent.image_dtype, device)
    if arranged := num_arranged_bytes(served):
        host.reserve(machine.device, "arranged weights", arranged, machine.free_memory_bytes)
    limits = UpscalingLimits(
        max_step_flops=_STEP_FLOPS[machine.device],
        max_num_rows=1 if intent.deterministic else intent.max_num_rows,
        max_work_bytes=_WORK_BYTES,
        max_num_images=intent.max_num_images,
        max_num_queued=intent.max_num_queued,
        max_tile=tiles.most,
        scheduling_policy=intent.scheduling_policy,
    )
    runner = TileRunner(on_device(served, device), device)
    engine = UpscalingEngine(UpscalingWork(runner, facts, limits), limits)
    host.report(Phase.WARMING_UP)
    engine.try_out([trial_request(facts)], _COMPLAINT)
    log.info(
        "upscaler loaded",
        seconds=round(time.monotonic() - started_s, 1),
        tile=tiles.usual,
        dtype=dtype,
        **asdict(facts),
    )
    return engine, UpscaleModelInfo(
        model=model_id,
        path=str(checkpoint.path),
        architecture=facts.architecture,
        dtype=dtype,
        created=int(time.time()),
        scale=facts.scale,
        receptive_radius=facts.receptive_radius,
        default_tile=tiles.usual,
        default_overlap=tiles.overlap,
        exact_by_default=tiles.are_exact,
        max_tile=tiles.most,
        config_hash=fingerprint((facts, dtype, tiles.usual, tiles.overlap, intent.deterministic)),
    )


@dataclass(frozen=True, slots=True)
class Tiles:
    """How images are divided by default, in pixels of the image."""

    usual: int
    most: int
    """The largest tile that requests may ask for."""
    overlap: int
    are_exact: bool
    """Whether tiles overlap enough for every pixel to be as without tiles."""


def reserved_tiles(facts: NetworkFacts, machine: MachineFacts, host: Host) -> Tiles:
    """Reserve memory for the default tile; the largest allowed tile follows from what is free then.

    Raises:
        InsufficientMemory: there is not enough memory for the default tile.
    """
    usual = default_tile(facts, machine.device)
    free = host.reserve(
        machine.device, "activations", facts.bytes_per_pixel * usual**2, machine.free_memory_bytes
    )
    fitting = int(math.sqrt(_TILE_SHARE * free / facts.bytes_per_pixel))
    radius = facts.receptive_radius
    is_exact = radius is not None and radius <= EXACT_UP_TO
    overlap = 2 * radius if is_exact and radius else FAST_OVERLAP
    return Tiles(usual, min(MAX_TILE, max(usual, fitting)), overlap, is_exact)


def load_network(checkpoint: Checkpoint) -> Network:
    """The network of a checkpoint, on the CPU.

    Raises:
        ModelLoadError: the network cannot be loaded.
    """
    if checkpoint.layout != "ncnn":
        return network_of(read_state_dict(checkpoint.path))
    weights = WeightReader(checkpoint.path.with_suffix(".bin"))
    graph = NcnnGraph(read_param(checkpoint.path), weights).eval().requires_grad_(False)
    network: Network = graph
    return recognised(graph) or network


def on_device(network: Any, device: torch.device) -> Network:
    """Move the network to its device, with weights in the layout that convolutions read."""
    moved: Network = network.to(device=device, memory_format=torch.channels_last)
    return moved


def default_tile(facts: NetworkFacts, device: str) -> int:
    """The largest tile for which a step has time."""
    most = math.sqrt(_TILE_FLOPS[device] / facts.flops_per_pixel)
    tile = next((tile for tile in _TILES if tile <= most), _TILES[-1])
    return max(tile, facts.min_side)


def trial_request(facts: NetworkFacts) -> UpscaleRequest:
    """A request to enlarge a small grey image."""
    side = _TRIAL_SIDE
    return UpscaleRequest(
        request_id="warm-up",
        model="",
        image=Pixels(width=side, height=side, channels=3, data=b"\x80" * (3 * side**2)),
        width=side * facts.scale,
        height=side * facts.scale,
        tile=side + 2 * BORDER + facts.size_multiple + facts.min_side,
        overlap=0,
    )
