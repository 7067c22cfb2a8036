"""Upscaling in tiles: results without seams, shared steps, memory, faults."""

import gc
import random
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from engine.errors import InvalidParameter
from engine.upscaling.precision import arranged
from kernels import native
from tests.helpers.upscaling.upscaling_nets import (
    PlainNet,
    compact_net,
    identity,
    nearest,
    noise,
    result_of,
    rrdb_net,
    run,
    untiled,
    upscale_request,
    upscaled,
    upscaling_engine,
)

CPU = torch.device("cpu")


def test_what_all_tiles_agree_on_comes_out_as_it_is() -> None:
    for _ in range(12):
        image = noise(random.randrange(1, 90), random.randrange(1, 90), random.choice((3, 4)))
        tile = random.randrange(8, 50)
        cut = {"tile": tile, "overlap": random.randrange(0, tile)}
        assert (upscaled(image, identity(), **cut) == image).all()
        doubled = image.repeat(2, 0).repeat(2, 1)
        assert (upscaled(image, nearest(2), **cut) == doubled).all()
        flat = np.full_like(image, 255)
        flat[..., :3] = random.randrange(256)
        assert (upscaled(flat, identity(), **cut) == flat).all()


@pytest.mark.parametrize("serve", [lambda net: net, lambda net: arranged(net, CPU)])
@pytest.mark.parametrize("shuffle", [1, 2])
def test_exact_tiles_give_the_untiled_image(shuffle: int, serve: Callable[[Any], Any]) -> None:
    """The receptive radius is derived, not measured: with one pixel less this fails. With PyTorch's
    convolutions and with our own, whose roundings go by where a tile begins."""
    for _ in range(3):
        net = serve(random.choice((compact_net(), rrdb_net(shuffle=shuffle))))
        radius = net.facts.receptive_radius
        tile = 2 * radius + random.randrange(4, 40)
        image = noise(random.randrange(tile, 130), random.randrange(1, 130))
        found = upscaled(image, net, tile=tile, overlap=2 * radius, exact=True)
        difference = np.abs(found.astype(int) - untiled(image, net))
        assert difference.max() <= 1


def test_an_image_of_one_pixel_and_of_one_row() -> None:
    net = compact_net()
    for width, height in ((1, 1), (1, 70), (70, 1)):
        image = noise(width, height)
        found = upscaled(image, net, tile=24, overlap=8)
        assert found.shape == (2 * height, 2 * width, 3)


def test_another_scale_is_made_of_the_networks() -> None:
    image = np.full((20, 30, 3), 77, np.uint8)
    found = upscaled(image, nearest(4), width=75, height=50)
    assert found.shape == (50, 75, 3)
    assert (found == 77).all()


def test_colours_of_what_is_transparent_do_not_bleed() -> None:
    """Red that shows beside green that does not: a smoothing network makes no yellow of them."""
    image = np.zeros((16, 16, 4), np.uint8)
    image[:, :8] = (255, 0, 0, 255)
    image[:, 8:] = (0, 255, 0, 0)
    blur = PlainNet(lambda x: torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
    found = upscaled(image, blur, tile=64, overlap=0)
    shows = found[..., 3] > 0
    assert shows[:, :9].all() and not shows[:, 9:].any()
    assert (found[shows][:, :3] == (255, 0, 0)).all()
    assert (found[~shows][:, :3] == (0, 255, 0)).all(), "the image's own colour where nothing shows"


@pytest.mark.skipif(native.library() is None, reason="needs the C++ operations")
def test_a_picture_has_the_same_bytes_in_any_company() -> None:
    net = arranged(compact_net(), CPU)  # as it is served: PyTorch's roundings go by the rows
    images = [noise(random.randrange(20, 70), random.randrange(20, 70)) for _ in range(4)]
    requests = [upscale_request(image, net) for image in images]
    found = run(upscaling_engine(net), *requests)
    for image, request in zip(images, requests, strict=True):
        alone = upscaled(image, net)
        assert (result_of(request, found[request.request_id]) == alone).all()


def test_tiles_of_different_requests_share_a_step_and_take_turns() -> None:
    net = identity()
    long, short = upscale_request(noise(200, 200), net), upscale_request(noise(44, 44), net)
    engine = upscaling_engine(net, max_num_rows=2)
    engine.add(long)
    first, _ = engine.step()
    engine.add(short)
    num_steps = 0
    ended: set[str] = set()
    while short.request_id not in ended:
        events, stats = engine.step()
        assert {event.request_id for event in events} == {long.request_id, short.request_id}
        assert stats.step_tiles == 2
        ended |= {event.request_id for event in events if event.finish_reason is not None}
        num_steps += 1
    assert num_steps == 9, "one of its own tiles in each step"
    assert net.shapes[1] == (2, 3, 32, 32)
    assert first[0].queue_time_s is not None


def test_previews_are_spread_over_the_tiles() -> None:
    net = nearest(2)
    image = np.full((60, 60, 3), 9, np.uint8)
    request = upscale_request(image, net, num_previews=3)
    events = run(upscaling_engine(net), request)[request.request_id]
    previews = [event for event in events if event.preview is not None]
    assert [event.preview_index for event in previews] == [0, 1, 2]
    assert all(event.finish_reason is None for event in previews)
    for event in previews:
        assert (event.preview.width, event.preview.height) == (120, 120)
        assert set(event.preview.data) == {9}
    assert [event.tile for event in events] == list(range(1, events[0].num_tiles + 1))


def test_memory_that_runs_out_makes_tiles_smaller_and_changes_nothing() -> None:
    inner = compact_net()
    radius = inner.facts.receptive_radius

    def compute(images: Tensor) -> Tensor:
        if images.shape[2] * images.shape[3] * len(images) > 40 * 40:
            raise MemoryError
        return inner(images)

    scarce = PlainNet(compute, scale=2, radius=radius)
    image = noise(110, 90)
    found = upscaled(image, scarce, tile=80, overlap=2 * radius, exact=True)
    assert np.abs(found.astype(int) - untiled(image, inner)).max() <= 1
    assert max(shape[2] for shape in scarce.shapes[1:]) == 80
    assert any(shape[2] <= 40 for shape in scarce.shapes)


@pytest.mark.parametrize(
    "fault", [ValueError("a fault"), MemoryError(), RuntimeError("cannot allocate memory"), None]
)
def test_nothing_of_a_picture_is_left_after_a_fault(fault: Exception | None) -> None:
    """Without the collector, which in a serving process hardly ever looks."""

    def compute(images: Tensor) -> Tensor:
        if fault is not None:
            raise type(fault)(*fault.args)
        return torch.full_like(images, torch.nan)

    net = PlainNet(compute)
    engine = upscaling_engine(net)
    requests = [upscale_request(noise(50, 50), net) for _ in range(random.randint(1, 3))]
    for request in requests:
        engine.add(request)
    pictures = [weakref.ref(pending.picture) for pending in engine._queue]
    gc.collect()
    gc.disable()
    try:
        with capture_logs() as lines:
            found = run(engine)
        lines.clear()  # they have the exceptions, and these the pictures
        assert [one() for one in pictures] == [None] * len(requests)
    finally:
        gc.enable()
    assert all(found[request.request_id][-1].failure for request in requests)


def test_large_results_wait_for_each_other_and_small_ones_for_none() -> None:
    net = identity()
    large = [upscale_request(noise(3000, 4), net) for _ in range(3)]
    small = upscale_request(noise(8, 8), net)
    # Room for one of the large ones and a bit.
    engine = upscaling_engine(net, max_work_bytes=3_000_000, max_num_rows=1)
    for request in [*large, small]:
        engine.add(request)
    order = []
    while engine.has_work():
        events, stats = engine.step()
        order += [event.request_id for event in events if event.finish_reason is not None]
        assert stats.num_running <= 2
    assert order == [small.request_id, *(request.request_id for request in large)]


def test_a_4k_result_takes_the_memory_of_a_row_of_tiles() -> None:
    """3840 x 2160 in three channels of 32 bits are 100 MB; with tiles of 64 pixels, of 256 in the
    result, a row of them takes 12 MB."""
    net = nearest(4)
    image = np.zeros((540, 960, 3), np.uint8)
    request = upscale_request(image, net, tile=64, overlap=16)
    engine = upscaling_engine(net, max_num_rows=1)
    engine.add(request)
    most = 4 * 3 * 256 * (3840 + 2 * 4 * 10)
    torch_bytes, num_rows = [], 0
    tracemalloc.start()
    while engine.has_work():
        events, _ = engine.step()
        num_rows += sum(len(event.rows) // (3 * 3840) for event in events)
        [pending] = [*engine._queue] or [None]
        if pending is not None and pending.picture._merged is not None:
            torch_bytes.append(pending.picture._merged._sum.nbytes)
            assert max(len(event.rows) for event in events) <= 3 * 256 * 3840
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_rows == 2160
    assert max(torch_bytes) == most
    assert peak < most + 4 * image.size, (
        "beside torch's: the rows of one event, tiles, and the result shrunk"
    )


def test_bad_requests_are_refused() -> None:
    net = compact_net()
    engine = upscaling_engine(net)
    changes = {"width": 1000}, {"height": 0}, {"tile": 5000}, {"overlap": 32}
    for fields in (*changes, {"exact": True, "overlap": 2}):
        with pytest.raises(InvalidParameter):
            engine.add(upscale_request(noise(9, 9), net, **fields))
