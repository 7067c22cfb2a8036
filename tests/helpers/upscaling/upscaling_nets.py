"""Small networks, images and requests for the tests of upscaling."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.contract.enlarge import UpscaleEvent, UpscaleRequest
from engine.pictures.arrays import pixels_of
from engine.pictures.tiles import mirrored
from engine.upscaling.network import NetworkFacts
from engine.upscaling.picture import BORDER
from engine.upscaling.rrdb import RrdbNet
from engine.upscaling.runner import TileRunner
from engine.upscaling.srvgg import CompactNet
from engine.upscaling.work import UpscalingEngine, UpscalingLimits, UpscalingWork

Image = npt.NDArray[np.uint8]
_numbers = itertools.count()


class PlainNet(nn.Module):
    """Any function of images as a network. It records the shapes that it saw."""

    def __init__(
        self, compute: Callable[[Tensor], Tensor], scale: int = 1, radius: int | None = 0
    ) -> None:
        super().__init__()
        self.compute = compute
        self.shapes: list[tuple[int, ...]] = []
        self.facts = NetworkFacts(
            architecture="plain",
            scale=scale,
            receptive_radius=radius,
            flops_per_pixel=1.0,
            bytes_per_pixel=64,
        )

    def forward(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        return self.compute(images)


def identity() -> PlainNet:
    return PlainNet(lambda images: images)


def nearest(scale: int) -> PlainNet:
    return PlainNet(
        lambda images: functional.interpolate(images, scale_factor=float(scale), mode="nearest"),
        scale,
    )


def drawn(net: Any) -> Any:
    """Draw a network with weights large enough for each pixel to matter to its neighbours."""
    for parameter in net.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 16
        parameter.data.normal_(0.0, 1.0 / fan**0.5)
    return net.eval().requires_grad_(False)


def compact_net(num_convs: int = 2, scale: int = 2) -> CompactNet:
    net: CompactNet = drawn(CompactNet(features=8, num_convs=num_convs, scale=scale))
    return net


def rrdb_net(**changes: int) -> RrdbNet:
    sizes = {"features": 8, "growth": 4, "num_blocks": 1, "num_doublings": 2} | changes
    net: RrdbNet = drawn(RrdbNet(**sizes))
    return net


def noise(width: int, height: int, channels: int = 3) -> Image:
    return np.array(random.choices(range(256), k=width * height * channels), np.uint8).reshape(
        height, width, channels
    )


def upscale_request(image: Image, net: Any, **changes: Any) -> UpscaleRequest:
    height, width, _ = image.shape
    fields: dict[str, Any] = {
        "request_id": f"r{next(_numbers)}",
        "model": "m",
        "image": pixels_of(image),
        "width": width * net.facts.scale,
        "height": height * net.facts.scale,
        "tile": 32,
        "overlap": 8,
    }
    return UpscaleRequest(**fields | changes)


def upscaling_engine(net: Any, **changes: Any) -> UpscalingEngine:
    fields: dict[str, Any] = {
        "max_step_flops": 1e12,
        "max_num_rows": 8,
        "max_work_bytes": 1 << 28,
        "max_num_images": 8,
        "max_num_queued": 32,
        "max_tile": 4096,
    }
    limits = UpscalingLimits(**fields | changes)
    runner = TileRunner(net, torch.device("cpu"))
    return UpscalingEngine(UpscalingWork(runner, net.facts, limits), limits)


def run(engine: UpscalingEngine, *requests: UpscaleRequest) -> dict[str, list[UpscaleEvent]]:
    """Run until all is done and return the events by request."""
    found: dict[str, list[UpscaleEvent]] = {}
    for request in requests:
        engine.add(request)
    while engine.has_work():
        events, _ = engine.step()
        for event in events:
            found.setdefault(event.request_id, []).append(event)
    return found


def result_of(request: UpscaleRequest, events: list[UpscaleEvent]) -> Image:
    """Join a result's rows, which must come whole and in order."""
    stride = request.width * request.image.channels
    data = b""
    for event in events:
        assert event.failure is None, event.failure
        assert not event.rows or event.first_row * stride == len(data)
        data += event.rows
    shape = (request.height, request.width, request.image.channels)
    return np.frombuffer(data, np.uint8).reshape(shape)


def upscaled(image: Image, net: Any, **changes: Any) -> Image:
    """Run a request alone in an engine and return its result."""
    request = upscale_request(image, net, **changes)
    return result_of(request, run(upscaling_engine(net), request)[request.request_id])


def untiled(image: Image, net: Any) -> Image:
    """Run the network on the whole image, mirrored beyond its borders."""
    height, width, _ = image.shape
    scale, multiple = net.facts.scale, net.facts.size_multiple
    border = -(-BORDER // multiple) * multiple
    ends = (-(-(side + 2 * border) // multiple) * multiple - border for side in (height, width))
    rows, columns = (
        mirrored(side, -border, end) for side, end in zip((height, width), ends, strict=True)
    )
    padded = torch.from_numpy(image[rows[:, None], columns]).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        made = net(padded)[0].clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0)
    start = border * scale
    return made.numpy()[start : start + height * scale, start : start + width * scale]
