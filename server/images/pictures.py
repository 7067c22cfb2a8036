"""Clients' pictures, from the files that they send to pixels: `Pictures`.

Every file is decoded in a process that may be lost, and only once there is memory for its pixels.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.contract.picture_facts import Crop, Resampling
from engine.contract.pixels import Pixels
from server.http.engine_run import EngineRun
from server.images.decoding import MaskMode
from server.images.header import IN_CHATS, UPLOADED, read_header, upright_size
from server.images.links import PictureLinks
from server.images.picture_budget import PictureBudget
from server.images.picture_processes import PictureProcesses
from server.images.picture_wire import Decoded, Question, Reading, Texts
from server.images.references import file_of
from server.protocol.image_inputs import ImageReference

MAX_INPUT_SIDE = 16_384

_CPU_S = 3
_PIXELS_PER_CPU_S = 1 << 21
"""Speed of decoding the slowest ordinary files on a slow machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPicture:
    """A file from a client, with the size in its header.

    Attributes:
        param: the field that messages name.
        width, height: for `crops`, of the upright picture.
        reading: how to decode it. `mask_mode` and `inverts` are for masks.
    """

    param: str
    data: bytes
    width: int
    height: int
    reading: Reading = Reading.IMAGE
    mask_mode: MaskMode = "auto"
    inverts: bool = False
    crops: tuple[Crop, ...] = ()
    resampling: Resampling = "bilinear"

    @property
    def num_bytes(self) -> int:
        """The most bytes that its pixels take."""
        if self.reading is Reading.CROPS:
            boxes = [crop.box for crop in self.crops]
            return 3 * sum((right - left) * (end - top) for left, top, right, end in boxes)
        channels = 4 if self.reading is Reading.IMAGE else 1
        return self.width * self.height * channels

    def question(self) -> Question:
        """The question for the process."""
        num_pixels = self.width * self.height
        return Question(
            reading=self.reading,
            param=self.param,
            max_pixels=num_pixels,
            max_side=MAX_INPUT_SIDE,
            cpu_s=_CPU_S + math.ceil(num_pixels / _PIXELS_PER_CPU_S),
            mask_mode=self.mask_mode,
            inverts=self.inverts,
            crops=self.crops,
            resampling=self.resampling,
            upright=(self.width, self.height),
        )


class Pictures:
    """The pictures of one app. Event loop only.

    Attributes:
        budget: the limit on the memory of all of them.
        between: the same for pictures between two stages of their request. A request that has
            taken memory there never waits for `budget`, so requests cannot wait for each other.
    """

    def __init__(self, processes: PictureProcesses, max_bytes: int, links: PictureLinks) -> None:
        self._processes = processes
        self._links = links
        self.budget, self.between = PictureBudget(max_bytes), PictureBudget(max_bytes)

    async def open(
        self,
        reference: ImageReference,
        param: str,
        *,
        max_pixels: int,
        reading: Reading = Reading.IMAGE,
        mask_mode: MaskMode = "auto",
        inverts: bool = False,
    ) -> EncodedPicture:
        """The file, after reading its header.

        Raises:
            InvalidParameter: the header shows that it cannot be used.
            UnsupportedFeature: a link that is not followed, or a file id.
        """
        followed = await self._links.follow(reference, param)

        def opened() -> EncodedPicture:
            data = file_of(followed, param)
            header = read_header(
                data,
                param=param,
                max_pixels=max_pixels,
                max_side=MAX_INPUT_SIDE,
                formats=IN_CHATS if reading is Reading.CROPS else UPLOADED,
            )
            width, height = header.width, header.height
            if reading is Reading.CROPS:
                width, height = upright_size(data, header)
            return EncodedPicture(
                param=param,
                data=data,
                width=width,
                height=height,
                reading=reading,
                mask_mode=mask_mode,
                inverts=inverts,
            )

        return await asyncio.to_thread(opened)

    async def decode(
        self, pictures: Sequence[EncodedPicture], run: EngineRun, model: str, priority: int
    ) -> list[Pixels]:
        """The pictures' pixels, once there is memory for all of them; the run holds the memory
        until it ends.

        Raises:
            InvalidParameter: a file cannot be used, or the pictures need more memory than the
                limit.
            InternalError: the fault is ours.
        """
        num_bytes = sum(picture.num_bytes for picture in pictures)
        share = await self.budget.take(model, num_bytes, priority)
        run.hold([share])
        found = [await self._pixels(picture) for picture in pictures]
        share.shrink(sum(len(pixels.data) for pixels in found))
        return found

    async def texts(self, reference: ImageReference, param: str, *, max_pixels: int) -> Texts:
        """The texts in a file; none of its pixels are decoded.

        Raises:
            as `open` and `decode`.
        """
        picture = await self.open(reference, param, max_pixels=max_pixels, reading=Reading.TEXTS)
        answer, _ = await self._processes.read(picture.question(), picture.data)
        assert isinstance(answer, Texts)
        return answer

    def close(self) -> None:
        """End the processes."""
        self._processes.close()

    async def _pixels(self, picture: EncodedPicture) -> Pixels:
        answer, data = await self._processes.read(picture.question(), picture.data)
        assert isinstance(answer, Decoded)
        return Pixels(width=answer.width, height=answer.height, channels=answer.channels, data=data)
