"""The pictures in a conversation: from what the client sent to parts of its prompt."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from engine.contract.generate import ModelInfo
from engine.contract.operations import GENERATE
from engine.contract.picture_facts import MOST_TIMES_LONGER, Crop
from engine.contract.prompt_states import StatePart
from engine.errors import EngineError, InvalidParameter, UnsupportedFeature
from server.http.engine_run import EngineRun
from server.images.picture_wire import Reading
from server.images.pictures import EncodedPicture
from server.protocol.chat import ChatMessage
from server.protocol.image_inputs import ImageReference
from server.state import AppState
from server.text.picture_rows import PictureRows


class ChatPictures:
    """The pictures of one conversation, in order. First `open` them, later `decode` them.

    Args:
        param: the field that messages name.

    Attributes:
        urls: where each picture is.
        marker: the text that marks the place of a picture in the prompt.
        rows: how the pictures enter the prompt; None if the model takes none.

    Raises:
        UnsupportedFeature: the model takes no pictures.
        InvalidParameter: there are too many.
    """

    def __init__(
        self, messages: Sequence[ChatMessage], info: ModelInfo, state: AppState, param: str
    ) -> None:
        self.urls = [part["url"] for message in messages for part in message.pictures()]
        self.marker = "" if info.pictures is None else info.pictures.marker
        self.rows = None if info.pictures is None else PictureRows(info.pictures, [], param)
        self._model = info.model
        self._state = state
        self._param = param
        self._files: list[EncodedPicture] = []
        most = state.settings.max_images_per_prompt
        if self.urls and self.rows is None:
            raise UnsupportedFeature(_no_images(info, state), param=param)
        if len(self.urls) > most:
            raise InvalidParameter(
                f"the conversation has {len(self.urls)} images; the limit is {most} "
                "(max_images_per_prompt); leave some out",
                param=param,
            )

    async def open(self) -> None:
        """Fetch the files and read their headers, from which the rows follow.

        Raises:
            InvalidParameter, UnsupportedFeature: a file cannot be used; names its number.
        """
        if self.rows is None:
            return
        settings, facts, num_bytes = self._state.settings, self.rows.facts, 0
        with self._named():
            for number, url in enumerate(self.urls, 1):
                opened = await self._state.pictures.open(
                    ImageReference(image_url=url, file_id=None),
                    f"image {number}",
                    max_pixels=settings.max_image_input_pixels,
                    reading=Reading.CROPS,
                )
                if not facts.takes(opened.width, opened.height):
                    raise InvalidParameter(
                        f"image {number} has {opened.width}x{opened.height} pixels; this model "
                        f"reads images whose longer side is at most {MOST_TIMES_LONGER} times the "
                        "shorter; crop the image"
                    )
                pieces = facts.pieces(opened.width, opened.height)
                crops = tuple(piece for piece in pieces if isinstance(piece, Crop))
                self._files.append(replace(opened, crops=crops, resampling=facts.resampling))
                self.rows.pictures.append(pieces)
                num_bytes += len(opened.data)
                if num_bytes > settings.max_body_bytes:  # links bring more than the body has
                    raise InvalidParameter(
                        f"the images have {num_bytes} bytes or more; the limit is "
                        f"{settings.max_body_bytes} (max_body_bytes); send fewer or smaller ones"
                    )

    async def decode(
        self, states: Sequence[StatePart], run: EngineRun, priority: int
    ) -> tuple[StatePart, ...]:
        """The parts of the prompt with the pixels of their crops, whose memory the run holds.

        Raises:
            InvalidParameter: a file cannot be used; names its number.
        """
        with self._named():
            found = await self._state.pictures.decode(self._files, run, self._model, priority)
        crops = (
            crop
            for file, pixels in zip(self._files, found, strict=True)
            for crop in _cut(pixels.data, file.crops)
        )
        parts = tuple(replace(part, content=crop) for part, crop in zip(states, crops, strict=True))
        self._files.clear()
        return parts

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Let errors name the field that the client knows."""
        try:
            yield
        except EngineError as error:
            error.param = self._param
            raise


def _cut(data: bytes, crops: Sequence[Crop]) -> Iterator[bytes]:
    start = 0
    for width, height in (crop.size for crop in crops):
        end = start + 3 * width * height
        yield data[start:end]
        start = end


def _no_images(info: ModelInfo, state: AppState) -> str:
    others = [one.name for one in state.engine.made_for(GENERATE) if one.pictures is not None]
    ask = f"ask {' or '.join(others)}" if others else "send text"
    return (
        f"{info.name} reads no images in messages; {ask}, and edit pictures with /v1/images/edits"
    )
