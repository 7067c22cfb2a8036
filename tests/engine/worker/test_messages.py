"""Pictures in the messages between server and worker."""

import random

import msgspec
import pytest
import zmq

from engine.contract.draw import ImageEvent, ImageRequest, ImageStats, InpaintParams
from engine.contract.enlarge import UpscaleRequest
from engine.contract.matte import MattingRequest
from engine.contract.pixels import Pixels
from engine.worker import messages
from engine.worker.loop import Link


def picture() -> Pixels:
    width, height, channels = (random.randint(1, 9) for _ in range(3))
    data = random.randbytes(width * height * channels)
    return Pixels(width=width, height=height, channels=channels, data=data)


def image_request() -> ImageRequest:
    return ImageRequest(
        request_id="r",
        model="m",
        prompt="a wolf",
        params=InpaintParams(width=8, height=8, seed=1, feather=random.randint(0, 9)),
        images=[picture() for _ in range(random.randint(1, 3))],
        mask=picture(),
    )


def upscale_request() -> UpscaleRequest:
    return UpscaleRequest(
        request_id="r", model="m", image=picture(), width=8, height=8, tile=4, overlap=1
    )


def matting_request() -> MattingRequest:
    return MattingRequest(request_id="r", model="m", image=picture(), trimap=picture())


@pytest.mark.parametrize("make", [image_request, upscale_request, matting_request])
def test_the_pictures_of_a_request_are_not_copied(make):
    request = make()
    frames = messages.frames_of(messages.Submit.of(request))
    images = request.images if isinstance(request, ImageRequest) else [request.image]
    others = [getattr(request, name, None) for name in ("mask", "trimap")]
    sent = [one.data for one in [*images, *others] if one is not None]
    assert [id(data) for data in frames[1:]] == [id(data) for data in sent]
    assert messages.decode_to_worker(*frames).read() == request


def test_the_pictures_of_a_step_are_not_copied():
    drawn = [ImageEvent(request_id="r", index=i, image=picture()) for i in range(2)]
    drawn.append(ImageEvent(request_id="r", index=2, preview=picture()))
    frames = messages.frames_of(messages.Step.of(drawn, ImageStats()))
    assert frames[1] is drawn[0].image.data
    assert frames[3] is drawn[2].preview.data
    assert messages.decode_from_worker(*frames).read() == (drawn, ImageStats())


@pytest.mark.parametrize("side", [1, 300])
def test_pictures_go_over_the_socket_and_back(tmp_path, side):
    """Small ones, and those large enough not to be copied there."""
    data = random.randbytes(side * side * 4)
    request = image_request()
    request.images.append(Pixels(width=side, height=side, channels=4, data=data))
    drawn = [ImageEvent(request_id="r", index=0, image=request.images[-1])]
    with zmq.Context() as context, context.socket(zmq.PAIR) as server:
        server.bind(f"ipc://{tmp_path}/socket")
        link = Link(f"ipc://{tmp_path}/socket")
        server.send_multipart(messages.frames_of(messages.Submit.of(request)), copy=False)
        assert link.receive().read() == request
        link.send(messages.Step.of(drawn, ImageStats()))
        arrived = messages.decode_from_worker(*server.recv_multipart())
        link.close()
    assert arrived.read() == (drawn, ImageStats())


def test_a_request_whose_pictures_are_missing_is_told_by_its_id():
    [data, *pixels] = messages.frames_of(messages.Submit.of(image_request()))
    arrived = messages.decode_to_worker(data, *pixels[:-1])
    with pytest.raises((IndexError, msgspec.ValidationError)):
        arrived.read()
    assert arrived.request_id() == "r"
