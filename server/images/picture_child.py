"""The process that decodes clients' pictures, within limits of time and memory.

`server.images.pictures` starts it as `python -m server.images.picture_child MEMORY_BYTES`. A
picture that takes too much ends this process and nothing else.
"""

import sys
from typing import Any

import msgspec
import numpy as np

from engine.errors import EngineError, Failure, InvalidParameter
from engine.processes.helper_child import Bytes, serve
from engine.processes.process_limits import limit_more_memory, limit_time
from server.images.decoding import decode_crops, decode_grey, decode_image, decode_mask, texts_of
from server.images.picture_wire import Answer, Decoded, Question, Reading, Refused, Texts

_read_question = msgspec.json.Decoder(Question).decode


def main() -> None:
    """Answer questions until nobody asks any more."""
    limit_more_memory(int(sys.argv[1]))
    serve(_answer_one)


def _answer_one(head: bytes, data: bytes) -> tuple[bytes, Bytes]:
    question = _read_question(head)
    limit_time(question.cpu_s)
    answer, pixels = _answer(question, data)
    return msgspec.json.encode(answer), pixels


def _answer(question: Question, data: bytes) -> tuple[Answer, Bytes]:
    try:
        return _read(question, data)
    except EngineError as error:
        if not isinstance(error.__cause__, MemoryError):
            return Refused(Failure.of(error)), b""
    except MemoryError:
        pass
    message = f"{question.param} takes too much memory to decode; scale it down"
    return Refused(Failure(InvalidParameter.code, message, question.param)), b""


def _read(question: Question, data: bytes) -> tuple[Answer, Bytes]:
    """Read a file as the question says.

    Raises:
        EngineError: the file cannot be used.
        MemoryError: it takes more memory than it may.
    """
    bounds: dict[str, Any] = {
        "param": question.param,
        "max_pixels": question.max_pixels,
        "max_side": question.max_side,
    }
    match question.reading:
        case Reading.TEXTS:
            return Texts(texts_of(data, **bounds)), b""
        case Reading.GREY:
            array = decode_grey(data, **bounds)
        case Reading.MASK:
            array = decode_mask(data, question.mask_mode, inverts=question.inverts, **bounds)
        case Reading.CROPS:
            array = decode_crops(
                data, question.crops, question.resampling, question.upright, **bounds
            )
        case Reading.IMAGE:
            array = decode_image(data, **bounds)
    height, width, channels = array.shape
    return Decoded(width, height, channels), np.ascontiguousarray(array).data.cast("B")


if __name__ == "__main__":
    main()
