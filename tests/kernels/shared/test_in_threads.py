"""Parts that are computed in threads must join to what one thread computes."""

import threading

import pytest
import torch

from kernels.shared.in_threads import joined_in_threads


@pytest.fixture(params=[1, 2, 3])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_parts_join_in_their_order(num_threads):
    whole = torch.randn(int(torch.randint(1, 40, ())), 5)
    seen = []

    def doubled(part):
        seen.append((threading.get_ident(), torch.get_num_threads()))
        return 2 * part

    with torch.inference_mode():
        step = int(torch.randint(1, 12, ()))
        joined = joined_in_threads(doubled, torch.split(whole, step))
    assert torch.equal(joined, 2 * whole)
    assert {threads for _, threads in seen} == {1}
    assert torch.get_num_threads() == num_threads


def test_an_error_leaves_the_number_of_threads(num_threads):
    def fail(part):
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        joined_in_threads(fail, torch.split(torch.ones(9, 2), 2))
    assert torch.get_num_threads() == num_threads
