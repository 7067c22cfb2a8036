"""The smallest of the built-in models, on a tiny image: ours beside its graph and ncnn itself."""

import numpy as np
import pytest
import torch

from engine.upscaling.ncnn.graph import NcnnGraph
from engine.upscaling.ncnn.param import read_param
from engine.upscaling.ncnn.recognition import recognised
from engine.upscaling.ncnn.weights import WeightReader
from engine.upscaling.precision import LEAST_DECIBELS, decibels, narrowed, trial_image
from engine.upscaling.srvgg import CompactNet
from engine.weights.source import Checkpoint
from tests.helpers.named_models import named_model


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return named_model("realesr-animevideov3")


@pytest.fixture(scope="module")
def graph(checkpoint: Checkpoint) -> NcnnGraph:
    weights = WeightReader(checkpoint.path.with_suffix(".bin"))
    return NcnnGraph(read_param(checkpoint.path), weights).eval().requires_grad_(False)


def test_it_is_our_compact_network(graph: NcnnGraph) -> None:
    found = recognised(graph)
    assert isinstance(found, CompactNet)
    assert (found.facts.scale, found.facts.receptive_radius) == (4, 18)
    image = trial_image()
    torch.testing.assert_close(found(image), graph(image), atol=1e-4, rtol=1e-4)
    narrow = narrowed(found)
    assert narrow is not None and decibels(found, narrow) > LEAST_DECIBELS


def test_ncnn_makes_the_same_of_it(checkpoint: Checkpoint, graph: NcnnGraph) -> None:
    ncnn = pytest.importorskip("ncnn", reason="ncnn is not installed")
    net = ncnn.Net()
    net.load_param(str(checkpoint.path))
    net.load_model(str(checkpoint.path.with_suffix(".bin")))
    image = trial_image()
    extractor = net.create_extractor()
    extractor.input("data", ncnn.Mat(np.ascontiguousarray(image[0].numpy())).clone())
    _, made = extractor.extract("output")
    found = graph(image)[0].numpy().clip(0, 1)
    assert np.abs(found - np.array(made).clip(0, 1)).max() < 1 / 255
