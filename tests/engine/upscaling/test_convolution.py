"""Networks of our own with our own operation: the same images as by PyTorch's."""

import random

import pytest
import torch

from engine.upscaling.precision import arranged
from kernels import native
from tests.helpers.upscaling.upscaling_nets import compact_net, rrdb_net

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(native.missing() is not None, reason="no C++ operations")


@pytest.mark.parametrize(
    "make",
    [
        compact_net,
        lambda: rrdb_net(num_blocks=2),
        lambda: rrdb_net(shuffle=2),
        lambda: rrdb_net(features=20, growth=17, num_doublings=0),
    ],
)
def test_the_same_image_and_the_same_bits_among_others(make) -> None:
    net = make()
    side = net.facts.size_multiple
    size = side * random.randrange(1, 20), side * random.randrange(1, 20)
    images = torch.rand(3, 3, *size).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = net(images)
        served = arranged(net, CPU)
        together = served(images)
        torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-4)
        for row in range(3):
            assert torch.equal(served(images[row : row + 1])[0], together[row])
