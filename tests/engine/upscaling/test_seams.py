"""Fast tiles, which overlap by less than the network sees: what of them shows in a photograph."""

import numpy as np
import pytest

from engine.upscaling.loading import load_network
from tests.helpers.named_models import named_model
from tests.helpers.pictures import photograph
from tests.helpers.upscaling.upscaling_nets import untiled, upscaled

TILE, OVERLAP = 64, 16


@pytest.mark.parametrize("name", ["astronaut", "chelsea"])
def test_no_line_between_tiles_stands_out(name: str) -> None:
    """With real weights: a seam would be a row or column along which the tiled result jumps where
    the untiled one does not."""
    network = load_network(named_model("realesr-animevideov3"))
    image = np.ascontiguousarray(photograph(name)[60:190, 70:240])
    tiled = upscaled(image, network, tile=TILE, overlap=OVERLAP).astype(int)
    whole = untiled(image, network).astype(int)
    for axis in (0, 1):
        across = 1 - axis
        jumps = np.abs(np.diff(tiled - whole, axis=axis)).mean(axis=(across, 2))
        steps = np.abs(np.diff(whole, axis=axis)).mean(axis=(across, 2))
        seam, interior = jumps.max(), np.percentile(steps, 99)
        assert seam < interior / 4, (axis, seam, interior)
    assert np.percentile(np.abs(tiled - whole), 99) <= 3
