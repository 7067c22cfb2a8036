"""Fast tiles, which overlap by less than the network sees: what of them shows in a photograph."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.upscaling.loading import load_network
from engine.weights.source import resolve_source
from tests.helpers.upscaling.upscaling_nets import untiled, upscaled

PHOTOGRAPHS = Path(__file__).parents[2] / "data" / "photographs"
TILE, OVERLAP = 64, 16


@pytest.mark.parametrize("name", ["astronaut", "chelsea"])
def test_no_line_between_tiles_stands_out(name: str) -> None:
    """With real weights: a seam would be a row or column along which the tiled result jumps where
    the untiled one does not."""
    network = load_network(
        resolve_source(
            "realesr-animevideov3",
            cache_dir=Path("~/.cache/tandem").expanduser(),
            on_progress=lambda fraction, line: None,
        )
    )
    photograph = np.asarray(Image.open(PHOTOGRAPHS / f"{name}.png").convert("RGB"))
    image = np.ascontiguousarray(photograph[60:190, 70:240])
    tiled = upscaled(image, network, tile=TILE, overlap=OVERLAP).astype(int)
    whole = untiled(image, network).astype(int)
    for axis in (0, 1):
        across = 1 - axis
        jumps = np.abs(np.diff(tiled - whole, axis=axis)).mean(axis=(across, 2))
        steps = np.abs(np.diff(whole, axis=axis)).mean(axis=(across, 2))
        seam, interior = jumps.max(), np.percentile(steps, 99)
        assert seam < interior / 4, (axis, seam, interior)
    assert np.percentile(np.abs(tiled - whole), 99) <= 3
