"""What adapters add to the rows of a small network, against the same weights merged."""

import copy
import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from engine.contract.adapter_orders import AdapterReport
from engine.contract.draw import LoraUse
from engine.diffusion.families.convolutions import ArrangedConvolution, arrange_convolutions
from engine.errors import ModelLoadError
from engine.lora.images.changes import Layer, Product
from engine.lora.images.gated_change import Lengths
from engine.lora.images.layers import AdaptedLayers
from engine.lora.loaded_adapters import finish
from engine.quantization.method_module import MethodModule
from tests.helpers.adapters.image_adapters import WAYS, dotted, load, merge, table_of, unload, write

ROWS = 5
CPU = torch.device("cpu")
DORA = "dora_scale"


class Network(nn.Module):
    """Linear layers and convolutions of several kinds, the first axis of all its rows."""

    def __init__(self):
        super().__init__()
        self.grow = nn.Conv2d(4, 6, 3, padding=1)
        self.halve = nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(6, 8, 1)
        self.inner = nn.Linear(8, 12)
        self.out = nn.Linear(12, 6, bias=False)

    def forward(self, x):
        maps = self.mix(torch.tanh(self.halve(torch.tanh(self.grow(x)))))
        tokens = torch.tanh(maps).flatten(2).transpose(1, 2)
        return self.out(torch.tanh(self.inner(tokens)))


PATHS = ("grow", "halve", "mix", "inner", "out")


@pytest.fixture
def seed():
    return random.randrange(1 << 30)


@pytest.fixture
def network(seed):
    torch.manual_seed(seed)
    return Network().requires_grad_(False).double().float()


@pytest.fixture
def x(network, seed):
    return torch.randn(ROWS, 4, 6, 8, generator=torch.Generator().manual_seed(seed + 1))


def adapted(network):
    return AdaptedLayers({"unet": [network]}, device=CPU)


@torch.no_grad()
def ran(layers, network, x, uses):
    with layers.rows(uses):
        return network(x)


@pytest.fixture
def serve(tmp_path):
    """`serve(layers, *made)` → a table of the adapters `a`, `b` …, and a use of each at scale 1."""

    def serve(layers, *adapters):
        table, uses = table_of(layers), []
        for name, made in zip("abcd", adapters, strict=False):
            report = load(table, name, made.save(tmp_path / f"{name}.safetensors"))
            assert isinstance(report, AdapterReport), report
            assert report.num_layers == len(made.updates)
            uses.append(LoraUse(name=table.key_of(name)))
        return table, *uses

    return serve


def assert_near(found, wanted, case=None):
    assert (found - wanted).abs().max() < 1e-5 * max(1, wanted.abs().max()), case


@torch.no_grad()
def merged(network, x, *parts):
    """With updates at their scales in the weights."""
    other = copy.deepcopy(network)
    for made, scale in parts:
        merge(other, made.updates, scale)
    return other(x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_it_is_what_it_comes_to(network, x, serve, seed, way, layout):
    expected = copy.deepcopy(network)
    made = write(network, PATHS, dotted("unet"), way=way, seed=seed)
    base = ran(adapted(network), network, x, [()] * ROWS)
    layers = adapted(network)
    _, use = serve(layers, made)
    uses = [(replace(use, scale=0.7),)] * ROWS
    found = ran(layers, network.to(memory_format=layout), x, uses)
    wanted = merged(expected, x, (made, 0.7))
    assert (wanted - base).abs().max() > 1e-2, "it does something"
    assert_near(found, wanted, way)


@pytest.mark.parametrize("lengths", [DORA, "lora_magnitude_vector"])
@pytest.mark.parametrize("way", WAYS)
def test_dora_is_what_it_comes_to(network, x, serve, seed, way, lengths):
    """Part of the way from the base with a scale, of layers with and without biases."""
    clean = copy.deepcopy(network)
    made = write(network, PATHS, dotted("unet"), way=way, seed=seed, lengths=lengths)
    layers = adapted(network)
    _, use = serve(layers, made)
    for scale in (1.0, 0.4):
        found = ran(layers, network, x, [(replace(use, scale=scale),)] * ROWS)
        assert_near(found, merged(clean, x, (made, scale)), (way, scale))


class Sealed(nn.Module):
    """A layer whose weights cannot be read."""

    def __init__(self, layer):
        super().__init__()
        self.weight, self._inside = torch.empty(layer.weight.shape, device="meta"), [layer]

    def forward(self, x):
        return self._inside[0](x)


def test_lengths_of_weights_that_cannot_be_read():
    """Those that can be among them."""
    plain, other = (nn.Linear(300, 7).requires_grad_(False) for _ in range(2))
    change = Product(Layer.of(plain), (torch.randn(3, 300), torch.randn(7, 3) / 10))
    lengths = Lengths("a", change.layer, change, torch.rand(7) + 1)
    gating = lengths.gating([plain, Sealed(other), other], torch.float32)
    assert [next(gating), next(gating)] == [None, None]
    found = finish(gating)
    wanted = finish(lengths.gating([plain, other, other], torch.float32))
    for own, its in zip(found, wanted, strict=True):
        torch.testing.assert_close(own.less_one, its.less_one)
        torch.testing.assert_close(own.bias, its.bias, atol=1e-5, rtol=0)
    nothing = Product(change.layer, (torch.zeros(3, 300), torch.zeros(7, 3)))
    without = Lengths("a", nothing.layer, nothing, lengths.magnitude)
    other.weight[3] = 0
    for module in (other, Sealed(other)):
        with pytest.raises(ModelLoadError, match="a has a row of weights with length 0"):
            finish(without.gating([module], torch.float32))


def test_dora_beside_another_one(network, x, serve, seed):
    """Each changes what the layer itself makes of a row, in any order."""
    clean, layers = copy.deepcopy(network), adapted(network)
    made = [
        write(clean, PATHS, dotted("unet"), seed=seed + place, lengths=lengths)
        for place, lengths in enumerate((DORA, None, DORA))
    ]
    _, a, b, c = served = serve(layers, *made)
    uses = [(a, b, c), (), (c,), (b, a), (b,)]
    found = ran(layers, network, x, uses)
    for row, own in enumerate(uses):
        parts = [(made[served.index(one) - 1], 1) for one in own]
        wanted = merged(clean, x[row : row + 1], *parts)
        assert_near(found[row], wanted[0], row)


@pytest.mark.parametrize("way", ["lora", "loha", "lokr"])
def test_rows_have_their_own(network, x, serve, seed, way):
    clean = copy.deepcopy(network)
    layers = adapted(network)
    base = ran(layers, network, x, [()] * ROWS)
    first, second = (
        write(network, paths, dotted("unet"), way=way, seed=seed + place)
        for place, paths in enumerate((PATHS, PATHS[1:4]))
    )
    _, a, b = serve(layers, first, second)
    half = replace(a, scale=0.5)
    uses = [(a,), (), (b,), (b, half), (half,)]
    together = ran(layers, network, x, uses)
    parts = [[(first, 1)], [], [(second, 1)], [(first, 0.5), (second, 1)], [(first, 0.5)]]
    for row, own in enumerate(parts):
        alone = ran(layers, network, x[row : row + 1], uses[row : row + 1])
        wanted = merged(clean, x[row : row + 1], *own)
        limit = 1e-5 * max(1, wanted.abs().max())
        assert (together[row] - wanted[0]).abs().max() < limit, row
        assert (together[row] - alone[0]).abs().max() < limit, row
    assert torch.equal(together[1], base[1]), "bit for bit"


def test_layers_are_what_has_numbers_of_inputs_and_outputs():
    found = adapted(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Conv2d(2, 2, 1, groups=2)))
    assert found.layers == {("unet", "0"): Layer(3, 2)}


class Nothing(nn.Linear):
    """Makes zeros of everything: what is found are the updates alone."""

    def forward(self, x):
        return torch.zeros(*x.shape[:-1], self.out_features)


def test_a_rows_updates_have_the_same_bits_whatever_the_others_have(serve, seed):
    layer = nn.Sequential(Nothing(24, 40, bias=False).requires_grad_(False))
    layers = adapted(layer)
    ways = ("lora", None), ("lokr", None), ("loha", None), ("lora", DORA)
    made = [
        write(layer, ("0",), dotted("unet"), way=way, seed=seed + place, lengths=lengths)
        for place, (way, lengths) in enumerate(ways)
    ]
    _, *uses = serve(layers, *made)
    a, b, c, d = (replace(use, scale=random.uniform(0.5, 2)) for use in uses)
    x = torch.randn(ROWS, random.randrange(1, 40), 24)
    together = ran(layers, layer, x, [(a,), (b,), (d, a), (c, a), (b, d)])
    for row, own in ((0, (a,)), (3, (a, c))):
        alone = ran(layers, layer, x[row : row + 1], [own])
        assert alone.abs().max() > 1e-2, "it does something"
        assert torch.equal(together[row], alone[0])


def test_nothing_is_left_of_what_has_gone(network, x, serve, tmp_path, seed):
    layers = adapted(network)
    base = ran(layers, network, x, [()] * ROWS)
    table, use = serve(layers, write(network, PATHS, dotted("unet"), seed=seed))
    assert not torch.equal(ran(layers, network, x, [(use,)] * ROWS), base)
    assert torch.equal(ran(layers, network, x, [()] * ROWS), base)
    assert unload(table, "a") == [None]
    assert torch.equal(ran(layers, network, x, [(use,)] * ROWS), base)
    assert not any(module._forward_hooks for module in network.modules())
    load(table, "a", tmp_path / "a.safetensors")
    assert table.key_of("a") != use.name


def test_fine_tunes_of_a_component_have_it_where_their_layers_fit(network, x, serve, seed):
    torch.manual_seed(seed + 9)
    tuned = Network().requires_grad_(False)
    tuned.grow = nn.Conv2d(4, 6, 5, padding=2).requires_grad_(False)
    layers = AdaptedLayers({"unet": [network, tuned]}, device=CPU)
    made = write(network, PATHS, dotted("unet"), seed=seed)
    wanted = merged(tuned, x, (made_without(made, "grow"), 1.0))
    _, use = serve(layers, made)
    assert_near(ran(layers, tuned, x, [(use,)] * ROWS), wanted)


def made_without(made, path):
    kept = {name: update for name, update in made.updates.items() if name != path}
    return type(made)(made.tensors, kept)


@pytest.mark.parametrize("lengths", [None, DORA])
def test_packed_layers_have_them_as_plain_ones_do(network, x, serve, seed, lengths):
    def product(weight_and_bias, rows):
        return nn.functional.linear(rows, *weight_and_bias)

    plain = copy.deepcopy(network)
    for name in ("inner", "out"):
        layer = getattr(network, name)
        state = layer.weight, layer.bias
        module = MethodModule(product, state, layer.in_features, layer.out_features)
        setattr(network, name, module)
    layers = adapted(network)
    made = write(plain, PATHS, dotted("unet"), seed=seed, lengths=lengths)
    _, use = serve(layers, made)
    assert_near(ran(layers, network, x, [(use,)] * ROWS), merged(plain, x, (made, 1.0)))


@pytest.mark.parametrize("lengths", [None, DORA])
def test_arranged_convolutions_have_them_as_plain_ones_do(serve, seed, lengths):
    """And a row without them has the same bits as before."""
    plain = nn.Sequential(nn.Conv2d(20, 36, 3, padding=1), nn.Conv2d(36, 17, 3, padding=1))
    plain.requires_grad_(False)
    network = copy.deepcopy(plain)
    arrange_convolutions(network)
    assert {type(module) for module in network} == {ArrangedConvolution}
    x = torch.randn(ROWS, 20, 9, 6).contiguous(memory_format=torch.channels_last)
    layers = adapted(network)
    base = ran(layers, network, x, [()] * ROWS)
    made = write(plain, ("0", "1"), dotted("unet"), seed=seed, lengths=lengths)
    _, use = serve(layers, made)
    found = ran(layers, network, x, [(use,)] * (ROWS - 1) + [()])
    wanted = merged(plain, x, (made, 1.0))
    assert (found - wanted)[:-1].abs().max() < 1e-5 * max(1, wanted.abs().max())
    assert torch.equal(found[-1], base[-1])


def test_a_layer_of_another_type_gets_its_inputs_type(network, x, serve, seed):
    layers = adapted(network)
    _, use = serve(layers, write(network, PATHS, dotted("unet"), seed=seed))
    network.to(torch.bfloat16)
    assert ran(layers, network, x.bfloat16(), [(use,)] * ROWS).dtype is torch.bfloat16
