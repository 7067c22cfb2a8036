"""Reads ncnn's `.bin` files, which hold the weights of all layers in turn, without names.

Weights that may be packed begin with a tag that says how; biases and slopes are plain 32-bit
numbers. The `.param` file says how many there are: each count is compared with the rest of the file
before anything is allocated.
"""

import os
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.errors import CorruptFile
from engine.files.checkpoint_files import open_regular, unreadable

HALF = 0x01306B47
EIGHT_BITS = 0x000D4B38
FULL = 0x0002C056
_MAX_BYTES = 1 << 30
_TABLE_ENTRIES = 256


class WeightReader:
    """Reads a file from beginning to end.

    Raises:
        CorruptFile: it is not a regular file, or larger than any upscaler.
        ModelLoadError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        try:
            with open_regular(path) as file:
                if os.fstat(file.fileno()).st_size > _MAX_BYTES:
                    raise CorruptFile(
                        f"{path.name} is larger than {_MAX_BYTES >> 20} MiB, the limit here"
                    )
                self._data = file.read(_MAX_BYTES)
        except OSError as error:
            raise unreadable(path, error) from error
        self._at = 0

    def packed(self, count: int) -> Tensor:
        """Read `count` weights that follow a tag, as float32.

        Raises:
            CorruptFile: the file is too short, or their packing is not supported.
        """
        (tag,) = struct.unpack("<I", self._take(4))
        if tag == HALF:
            return self._numbers(count, "<f2")
        if tag in (0, FULL):
            return self._numbers(count, "<f4")
        if tag == EIGHT_BITS:
            raise CorruptFile(f"{self._name} has weights of 8 bits, which are not supported")
        table = self._numbers(_TABLE_ENTRIES, "<f4")
        return table[self._numbers(count, "u1").long()]

    def plain(self, count: int) -> Tensor:
        """Read `count` 32-bit numbers.

        Raises:
            CorruptFile: the file is too short.
        """
        return self._numbers(count, "<f4")

    def close(self) -> None:
        """Check that everything was read.

        Raises:
            CorruptFile: something is left, so the file belongs to another graph.
        """
        left = len(self._data) - self._at
        if left:
            raise CorruptFile(
                f"{self._name} has {left} bytes more than its .param file describes; fetch both "
                f"files from the same model"
            )

    def _numbers(self, count: int, form: str) -> Tensor:
        size = count * np.dtype(form).itemsize
        data = self._take(-(-size // 4) * 4)
        return torch.from_numpy(np.frombuffer(data[:size], form).astype(np.float32))

    def _take(self, size: int) -> bytes:
        if not 0 <= size <= len(self._data) - self._at:
            raise CorruptFile(f"{self._name} ends {size} bytes too early; fetch it again")
        self._at += size
        return self._data[self._at - size : self._at]
