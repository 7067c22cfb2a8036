"""Loads a network's file into an engine that removes backgrounds: checks, loads and warms up."""

import time

import cv2
import numpy as np
import structlog

from engine.contract.fingerprint import fingerprint
from engine.contract.host import Host
from engine.contract.image_settings import PixelSettings
from engine.contract.matte import MattingModelInfo, MattingRequest
from engine.contract.status import Phase
from engine.matting.network import load_network
from engine.matting.network_files import read_facts
from engine.matting.work import WORK_BYTES, MattingEngine, MattingLimits, MattingWork
from engine.pictures.arrays import pixels_of
from engine.runtime.device import num_usable_cores
from engine.runtime.memory import available_host_memory
from engine.runtime.threads import limit_threads
from engine.weights.source import Checkpoint

_WEIGHT_COPIES = 2
"""The number of copies of the weights: onnxruntime keeps its own layout beside the file's."""

_COMPLAINT = (
    "a trial picture failed: {reason}; the network is damaged or does not find subjects: fetch it "
    "again or serve another one"
)

log = structlog.get_logger(__name__)


def load_engine(
    checkpoint: Checkpoint, model_id: str, intent: PixelSettings, host: Host
) -> tuple[MattingEngine, MattingModelInfo]:
    """Load a network and serve it as `model_id`. It runs on the CPU, whatever `intent` says.

    Raises:
        ModelLoadError: the checkpoint cannot be served; the message may be shown to clients.
    """
    started_s = time.monotonic()
    facts = read_facts(checkpoint.path)
    capacity = available_host_memory()
    weights = _WEIGHT_COPIES * checkpoint.path.stat().st_size
    host.reserve("cpu", "weights", weights, capacity)
    host.reserve("cpu", "pictures being processed", WORK_BYTES, capacity)
    num_threads = intent.num_threads or num_usable_cores()
    limit_threads(num_threads)
    cv2.setNumThreads(num_threads)
    network = load_network(checkpoint.path, facts, num_threads)
    host.report(Phase.WARMING_UP)
    limits = MattingLimits(
        max_num_images=intent.max_num_images,
        max_num_queued=intent.max_num_queued,
        scheduling_policy=intent.scheduling_policy,
    )
    engine = MattingEngine(MattingWork(network, limits), limits)
    engine.try_out(trial_requests(), _COMPLAINT)
    facts = network.facts
    log.info("matting model loaded", seconds=round(time.monotonic() - started_s, 1))
    return engine, MattingModelInfo(
        model=model_id,
        path=str(checkpoint.path),
        architecture=facts.architecture,
        dtype="float32",
        created=int(time.time()),
        side=facts.side,
        config_hash=fingerprint(
            (facts.architecture, facts.side, tuple(facts.mean), tuple(facts.std))
        ),
    )


def trial_requests() -> list[MattingRequest]:
    """Requests for a small picture, without and with a trimap."""
    rows, columns = np.mgrid[:32, :32]
    disc = np.hypot(rows - 16, columns - 16)
    image = pixels_of(np.where(disc[..., None] < 8, 230, 20).astype(np.uint8).repeat(3, axis=2))
    levels = np.select([disc < 6, disc > 10], [255, 0], 128).astype(np.uint8)
    return [
        MattingRequest(request_id=f"warm-up-{number}", model="", image=image, trimap=trimap)
        for number, trimap in enumerate((None, pixels_of(levels)))
    ]
