import numpy as np
import torch

from engine.upscaling.preview import PreviewCanvas


def test_a_preview_of_one_column_shows_all_rows() -> None:
    """Where torch's own resampling repeats the first one."""
    column = torch.linspace(0, 1, 4096)[None, :, None].expand(3, -1, -1).contiguous()
    shown = PreviewCanvas(column, (1, 4096)).pixels()
    assert (shown.width, shown.height) == (1, PreviewCanvas.MAX_SIDE)
    levels = np.frombuffer(shown.data, np.uint8).reshape(-1, 3).astype(int)
    assert np.abs(levels - np.linspace(0, 255, 1024)[:, None]).max() < 2
