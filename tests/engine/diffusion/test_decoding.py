import threading
from collections.abc import Iterator

import pytest
import torch

from engine.contract.pixels import Pixels
from engine.diffusion.decoding import DecodeThread

PICTURE = Pixels(width=1, height=1, channels=3, data=bytes(3))
MOST = 3


@pytest.fixture
def decoder() -> Iterator[DecodeThread]:
    """A decode thread that may use up to `MOST` threads."""
    torch.set_num_threads(MOST)
    thread = DecodeThread()
    yield thread
    thread.close()


def test_it_leaves_the_cores_to_the_denoiser_while_that_works(decoder: DecodeThread) -> None:
    """Within one piece of work, too: both events stand for calls between two changes."""
    used: list[int] = []
    noted, changed = threading.Semaphore(0), threading.Semaphore(0)

    def work() -> Pixels:
        for _ in range(3):
            torch.zeros(1).add(1)
            used.append(torch.get_num_threads())
            noted.release()
            changed.acquire()
        return PICTURE

    decoder.submit((1, -1), work)
    for is_alone in (True, False, False):
        noted.acquire()
        decoder.is_alone = is_alone
        changed.release()
    (decoded,) = decoder.collect(wait_s=60)
    assert decoded.error is None
    assert used == [1, MOST, 1]
