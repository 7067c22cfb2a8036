"""The network that finds a picture's subject: an ONNX file, run by onnxruntime on the CPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.fault import Unusable
from engine.matting.arrays import Bytes, Floats
from engine.matting.network_files import NetworkFacts
from engine.matting.resampling import resize, shrink

LEAST_SPREAD = 0.3
"""A mask whose numbers lie closer together shows no subject: stretched, it would show noise."""


class Network(Protocol):
    """Finds the subject of a picture."""

    def mask(self, image: Bytes) -> Floats:
        """Of a picture [H, W, 3]: [side, side], from 0 for background to 1 for the subject."""
        ...


@dataclass(slots=True)
class OnnxNetwork:
    """A loaded one; made by `load_network`."""

    session: Any
    facts: NetworkFacts

    def mask(self, image: Bytes) -> Floats:
        facts = self.facts
        side = facts.side
        small = shrink(image, side, side)
        if image.shape[0] * image.shape[1] < side * side:
            small = resize(image.astype(np.float32), side, side)
        colours = small.astype(np.float32)
        brightest = float(colours.max()) if facts.scales_by_brightest else 255.0
        colours /= max(brightest, 1.0)
        mean, std = (np.asarray(values, np.float32) for values in (facts.mean, facts.std))
        colours = (colours - mean) / std
        planes = np.ascontiguousarray(colours.transpose(2, 0, 1)[None], np.float32)
        [output, *_] = self.session.run([facts.output], {facts.input: planes})
        return _probabilities(np.asarray(output, np.float32).reshape(output.shape[-2:]))


def load_network(path: Path, facts: NetworkFacts, num_threads: int) -> OnnxNetwork:
    """Make a checked file run (`engine.matting.network_files.read_facts`). No library of custom
    operations is loaded for it, so nothing but onnxruntime's own is run.

    Raises:
        UnsupportedArchitecture: it has operations that onnxruntime does not know, or takes or gives
            something else than pictures.
        ModelLoadError: onnxruntime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # What it allocates for a picture goes back afterwards: the equations for alpha need it next.
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
                f"{path.name!r} has operations that onnxruntime does not have"
            ) from error
        raise ModelLoadError(
            f"onnxruntime cannot load {path.name!r}; it is damaged, or made for another version"
        ) from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        raise UnsupportedArchitecture(
            f"{path.name!r} does not take a picture alone, of 32-bit numbers; U²-Net, IS-Net and "
            f"BiRefNet do"
        )
    facts = facts.with_shapes(inputs[0].name, inputs[0].shape, outputs[0].name)
    return OnnxNetwork(session, facts)


def _probabilities(mask: Floats) -> Floats:
    """From 0 to 1: U²-Net's numbers are, BiRefNet's become so by the logistic function. Then
    stretched, as rembg does, if there is anything to see.

    Raises:
        Unusable: some are infinite or not numbers.
    """
    if not np.isfinite(mask).all():
        raise Unusable("the network gave numbers that are not finite")
    low, high = float(mask.min()), float(mask.max())
    if low < -1e-3 or high > 1.0 + 1e-3:
        mask = 1.0 / (1.0 + np.exp(-mask.clip(-30.0, 30.0)))
        low, high = float(mask.min()), float(mask.max())
    if high - low < LEAST_SPREAD:
        return mask.clip(0.0, 1.0)
    return np.asarray((mask - low) / (high - low), np.float32)
