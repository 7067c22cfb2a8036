"""The network that finds a picture's subject: an ONNX file, run by onnxruntime on the CPU."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.matting.network_files import NetworkFacts
from engine.pictures.arrays import Bytes, Floats
from engine.pictures.resizing import resized
from engine.runtime.fault import Unusable

LEAST_SPREAD = 0.3
"""The least range of a mask's numbers; a mask with less shows no subject, only noise."""


class Network(Protocol):
    """Finds the subject of a picture."""

    def mask(self, image: Bytes) -> Floats:
        """The mask [side, side] of a picture [H, W, 3], from 0 for background to 1 for the
        subject."""
        ...


@dataclass(slots=True)
class OnnxNetwork:
    """A loaded ONNX network, made by `load_network`."""

    session: Any
    facts: NetworkFacts

    def mask(self, image: Bytes) -> Floats:
        facts = self.facts
        side = facts.side
        if image.shape[0] * image.shape[1] < side * side:
            colours = resized(image.astype(np.float32), side, side)
        else:
            colours = resized(image, side, side, cv2.INTER_AREA).astype(np.float32)
        brightest = float(colours.max()) if facts.scales_by_brightest else 255.0
        colours /= max(brightest, 1.0)
        mean, std = (np.asarray(values, np.float32) for values in (facts.mean, facts.std))
        colours = (colours - mean) / std
        planes = np.ascontiguousarray(colours.transpose(2, 0, 1)[None], np.float32)
        [output, *_] = self.session.run([facts.output], {facts.input: planes})
        return _probabilities(np.asarray(output, np.float32).reshape(output.shape[-2:]))


def load_network(path: Path, facts: NetworkFacts, num_threads: int) -> OnnxNetwork:
    """Load a checked file (`engine.matting.network_files.read_facts`). No library of custom
    operations is loaded, so only onnxruntime's own code runs.

    Raises:
        UnsupportedArchitecture: it has operations that onnxruntime does not know, or its inputs or
            outputs are not pictures.
        ModelLoadError: onnxruntime cannot load it.
    """
    # Its official builds send what they run to their makers, and the environment alone keeps them
    # from it.
    os.putenv("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Memory for a picture is released afterwards, as the equations for alpha need it next.
    options.enable_cpu_mem_arena = False
    # Threads that spin between two pictures would take the cores from other models.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        reason = str(error)
        if "is not a registered function/op" in reason or "No opset import" in reason:
            raise UnsupportedArchitecture(
                f"{path.name!r} has operations that onnxruntime does not have; export it with "
                f"standard ONNX operations"
            ) from error
        raise ModelLoadError(
            f"onnxruntime cannot load {path.name!r}, which is damaged or made for another version; "
            f"fetch it again"
        ) from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        raise UnsupportedArchitecture(
            f"{path.name!r} must take one picture of 32-bit numbers and nothing else; use U²-Net, "
            f"IS-Net or BiRefNet"
        )
    facts = facts.with_shapes(inputs[0].name, inputs[0].shape, outputs[0].name)
    return OnnxNetwork(session, facts)


def _probabilities(mask: Floats) -> Floats:
    """The mask as numbers from 0 to 1. U²-Net's already are; BiRefNet's become so by the logistic
    function. The mask is then stretched, as in rembg, if it shows a subject.

    Raises:
        Unusable: some numbers are infinite or NaN.
    """
    if not np.isfinite(mask).all():
        raise Unusable("the network produced numbers that are not finite")
    low, high = float(mask.min()), float(mask.max())
    if low < -1e-3 or high > 1.0 + 1e-3:
        mask = 1.0 / (1.0 + np.exp(-mask.clip(-30.0, 30.0)))
        low, high = float(mask.min()), float(mask.max())
    if high - low < LEAST_SPREAD:
        return mask.clip(0.0, 1.0)
    return np.asarray((mask - low) / (high - low), np.float32)
