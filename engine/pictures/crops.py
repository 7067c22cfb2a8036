"""Cuts the crops of a picture that a text model's encoder reads."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from engine.contract.picture_facts import Crop, Resampling
from engine.contract.picture_sizes import Size
from engine.pictures.arrays import Bytes


def cut_crops(picture: Bytes, crops: Sequence[Crop], resampling: Resampling) -> list[Bytes]:
    """Cut crops from a picture, [H, W, 3]. The results have the bits of transformers' processors
    that use Pillow."""
    method = Image.Resampling[resampling.upper()]
    resized: dict[tuple[Size, ...], Image.Image] = {(): Image.fromarray(picture)}
    cut = []
    for crop in crops:
        for number in range(1, len(crop.resizes) + 1):
            sizes = crop.resizes[:number]
            if sizes not in resized:
                resized[sizes] = resized[sizes[:-1]].resize(sizes[-1], method)
        cut.append(np.asarray(resized[crop.resizes].crop(crop.box)))
    return cut
