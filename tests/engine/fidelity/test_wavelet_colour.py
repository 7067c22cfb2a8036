import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.fidelity.wavelet_colour import lowest_band, wavelet_colour
from engine.pictures import arrays
from tests.helpers.pictures import noise, photograph, resized, rounded


def reference_lowest_band(picture: torch.Tensor) -> torch.Tensor:
    """SUPIR's `wavelet_decomposition`, the part that is kept of the input."""
    row = torch.tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row[None, :])[None, None].repeat(3, 1, 1, 1)
    for level in range(5):
        distance = 2**level
        padded = F.pad(picture, (distance,) * 4, mode="replicate")
        picture = F.conv2d(padded, kernel, groups=3, dilation=distance)
    return picture


@pytest.mark.parametrize("size", [(70, 90), (40, 33), (5, 100), (1, 1)])
def test_the_lowest_band_is_supirs(size: tuple[int, int]) -> None:
    planes = noise(*size).astype(np.float32)
    theirs = reference_lowest_band(torch.from_numpy(planes.transpose(2, 0, 1).copy())[None])[0]
    assert np.abs(lowest_band(planes) - theirs.permute(1, 2, 0).numpy()).max() < 1e-3


def test_a_drift_of_colours_goes_and_detail_stays() -> None:
    whole = photograph("chelsea")
    small = rounded(resized(whole, 150, 226))
    drifted = rounded(whole * np.array([0.8, 0.9, 0.8], np.float32) + 15)
    corrected = wavelet_colour(drifted, small).astype(np.float32)
    means = corrected.mean(axis=(0, 1)) - whole.mean(axis=(0, 1))
    assert np.abs(means).max() < 1
    detail = corrected - lowest_band(corrected)
    drifted_detail = drifted - lowest_band(drifted.astype(np.float32))
    assert np.abs(detail - drifted_detail).mean() < 1


def test_right_colours_stay_as_they_are() -> None:
    picture = noise(50, 60)
    assert wavelet_colour(picture, picture).tolist() == picture.tolist()


@pytest.mark.parametrize("channels", [3, 4])
def test_bands_change_nothing(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    result, small = noise(150, 20, channels), noise(50, 7, channels)
    result[..., channels - 1] |= 128
    whole = wavelet_colour(result, small)
    monkeypatch.setattr(arrays, "BAND_PIXELS", 20 * 7)
    assert np.abs(wavelet_colour(result, small).astype(int) - whole).max() <= 2
