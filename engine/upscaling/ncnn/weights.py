"""ncnn's `.bin` files: the weights of all layers, one after the other, without names.

What may be packed begins with a tag that says how; biases and slopes are plain numbers of 32 bits.
How many there are, the `.param` file says: each number is compared with what is left of the file
before anything is made of it.
"""

import os
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint_files import open_regular, unreadable
from engine.errors import CorruptFile

HALF = 0x01306B47
EIGHT_BITS = 0x000D4B38
FULL = 0x0002C056
_MAX_BYTES = 1 << 30
_TABLE_ENTRIES = 256


class WeightReader:
    """Reads a file from its beginning to its end.

    Raises:
        CorruptFile: it is no regular file, or larger than any upscaler.
        ModelLoadError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        try:
            with open_regular(path) as file:
                if os.fstat(file.fileno()).st_size > _MAX_BYTES:
                    raise CorruptFile(
                        f"{path.name} is larger than {_MAX_BYTES >> 20} MiB, which no upscaler is"
                    )
                self._data = file.read(_MAX_BYTES)
        except OSError as error:
            raise unreadable(path, error) from error
        self._at = 0

    def packed(self, count: int) -> Tensor:
        """So many weights that a tag comes before, as float32.

        Raises:
            CorruptFile: the file ends before, or they are packed in a way that is not read.
        """
        (tag,) = struct.unpack("<I", self._take(4))
        if tag == HALF:
            return self._numbers(count, "<f2")
        if tag in (0, FULL):
            return self._numbers(count, "<f4")
        if tag == EIGHT_BITS:
            raise CorruptFile(f"{self._name} has weights of 8 bits, which are not read")
        table = self._numbers(_TABLE_ENTRIES, "<f4")
        return table[self._numbers(count, "u1").long()]

    def plain(self, count: int) -> Tensor:
        """So many numbers of 32 bits.

        Raises:
            CorruptFile: the file ends before.
        """
        return self._numbers(count, "<f4")

    def close(self) -> None:
        """
        Raises:
            CorruptFile: something is left, so that it belongs to another graph.
        """
        left = len(self._data) - self._at
        if left:
            raise CorruptFile(
                f"{self._name} has {left} bytes more than its .param file tells of; fetch both "
                f"files of one model"
            )

    def _numbers(self, count: int, form: str) -> Tensor:
        size = count * np.dtype(form).itemsize
        data = self._take(-(-size // 4) * 4)
        return torch.from_numpy(np.frombuffer(data[:size], form).astype(np.float32))

    def _take(self, size: int) -> bytes:
        if not 0 <= size <= len(self._data) - self._at:
            raise CorruptFile(
                f"{self._name} ends where {size} more bytes were to come; fetch it again"
            )
        self._at += size
        return self._data[self._at - size : self._at]
