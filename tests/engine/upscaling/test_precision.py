"""bfloat16: measured, and not served where it shows."""

import pytest
import torch

from engine.upscaling import precision
from engine.upscaling.precision import LEAST_DECIBELS, decibels, narrowed, served_network
from tests.helpers.upscaling.upscaling_nets import compact_net, identity, rrdb_net

CPU = torch.device("cpu")


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.isa, "multiplies_bf16", lambda: True)


@pytest.mark.parametrize("make", [compact_net, rrdb_net])
def test_sixteen_bits_inside_and_thirty_two_at_the_end(make: object) -> None:
    net = make()  # type: ignore[operator]
    narrow = narrowed(net)
    assert narrow is not None
    made = narrow(torch.rand(1, 3, 8, 8))
    assert made.dtype == torch.float32
    assert net(torch.rand(1, 3, 8, 8)).dtype == torch.float32
    assert 20 < decibels(net, narrow) < 100, "another network, though a similar one"


def test_what_shows_is_served_in_full(fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    net = compact_net()
    for found, name in ((LEAST_DECIBELS - 1, "float32"), (LEAST_DECIBELS, "bfloat16")):
        monkeypatch.setattr(precision, "decibels", lambda *nets, found=found: found)
        assert served_network(net, "auto", CPU)[1] == name
    monkeypatch.setattr(precision, "decibels", lambda *nets: 0.0)
    assert served_network(net, "bfloat16", CPU)[1] == "bfloat16"
    assert served_network(net, "float32", CPU) == (net, "float32")


def test_slow_machines_and_other_networks_stay_at_thirty_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision.isa, "multiplies_bf16", lambda: False)
    net = compact_net()
    assert served_network(net, "auto", CPU) == (net, "float32")
    other = identity()
    assert served_network(other, "bfloat16", CPU) == (other, "float32")
