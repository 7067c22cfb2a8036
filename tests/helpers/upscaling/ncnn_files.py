"""Writes our networks as ncnn's files, as its own converters do."""

import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from engine.upscaling.rrdb import RrdbNet
from engine.upscaling.srvgg import CompactNet


class NcnnWriter:
    """Collects layers and weights. `tag` says how weights are packed."""

    def __init__(self, tag: int = 0x01306B47) -> None:
        self.lines = ["Input input 0 1 data"]
        self.data = b""
        self._tag = tag
        self._num_blobs = 0

    def layer(self, kind: str, inputs: list[str], *values: str) -> str:
        self._num_blobs += 1
        made = f"b{self._num_blobs}"
        words = [kind, f"{kind}_{self._num_blobs}", str(len(inputs)), "1", *inputs, made, *values]
        self.lines.append(" ".join(words))
        return made

    def conv(self, conv: nn.Conv2d, given: str, slope: float | None = None) -> str:
        assert conv.bias is not None
        weight = conv.weight.numpy()
        form = "<f2" if self._tag == 0x01306B47 else "<f4"
        packed = weight.astype(form).tobytes()
        self.data += struct.pack("<I", self._tag) + packed + b"\0" * (-len(packed) % 4)
        self.data += conv.bias.numpy().astype("<f4").tobytes()
        activation = [] if slope is None else ["9=2", f"-23310=1,{slope:e}"]
        sizes = [f"0={conv.out_channels}", "1=3", "4=1", "5=1", f"6={weight.size}"]
        return self.layer("Convolution", [given], *sizes, *activation)

    def prelu(self, slopes: Tensor, given: str) -> str:
        self.data += slopes.numpy().astype("<f4").tobytes()
        return self.layer("PReLU", [given], f"0={len(slopes)}")

    def save(self, folder: Path, name: str = "model") -> Path:
        path = folder / f"{name}.param"
        lines, num_blobs = _with_splits(self.lines)
        head = ["7767517", f"{len(lines)} {num_blobs}"]
        path.write_text("\n".join([*head, *lines]) + "\n")
        path.with_suffix(".bin").write_bytes(self.data)
        return path


def _with_splits(lines: list[str]) -> tuple[list[str], int]:
    """The layers, and the number of blobs, with a copy of what is read more than once for each
    that reads it, as ncnn needs it."""
    readers = Counter(name for line in lines for name in _inputs(line))
    copies: dict[str, Iterator[int]] = {}
    made: list[str] = []
    num_blobs = 0
    for line in lines:
        words = line.split()
        for at, name in enumerate(_inputs(line), 4):
            if readers[name] > 1:
                words[at] = f"{name}_{next(copies[name])}"
        made.append(" ".join(words))
        output = words[4 + int(words[2])]
        num_blobs += 1
        if readers[output] > 1:
            names = [f"{output}_{number}" for number in range(readers[output])]
            made.append(
                " ".join(["Split", f"split_{output}", "1", str(len(names)), output, *names])
            )
            num_blobs += len(names)
            copies[output] = iter(range(len(names)))
    return made, num_blobs


def _inputs(line: str) -> list[str]:
    words = line.split()
    return words[4 : 4 + int(words[2])]


def write_compact(net: CompactNet, folder: Path, *, tag: int = 0x01306B47) -> Path:
    writer = NcnnWriter(tag)
    x = "data"
    for layer in net.body:
        x = (
            writer.conv(layer, x)
            if isinstance(layer, nn.Conv2d)
            else writer.prelu(layer.get_parameter("weight"), x)
        )
    scale = net.facts.scale
    details = writer.layer("PixelShuffle", [x], f"0={scale}")
    plain = writer.layer("Interp", ["data"], "0=1", f"1={scale:e}", f"2={scale:e}")
    writer.layer("BinaryOp", [details, plain], "0=0")
    return writer.save(folder)


def write_rrdb(net: RrdbNet, folder: Path, *, residual: float = 0.2) -> Path:
    writer = NcnnWriter()
    convs: dict[str, Any] = dict(net.named_modules())

    def scaled_sum(x: str, y: str) -> str:
        return writer.layer("Eltwise", [x, y], "0=1", f"-23301=2,{residual:e},1.000000e+00")

    first = x = writer.conv(convs["conv_first"], "data")
    for block in range(len(net.body)):
        outer = x
        for dense in range(1, 4):
            known = [x]
            for number in range(1, 6):
                joined = known[0] if len(known) == 1 else writer.layer("Concat", known, "0=0")
                conv = convs[f"body.{block}.rdb{dense}.conv{number}"]
                known.append(writer.conv(conv, joined, None if number == 5 else 0.2))
            x = scaled_sum(known[-1], x)
        x = scaled_sum(x, outer)
    x = writer.layer("BinaryOp", [first, writer.conv(convs["conv_body"], x)], "0=0")
    for number in range(1, 3):
        x = writer.layer("Interp", [x], "0=1", "1=2.0", "2=2.0")
        x = writer.conv(convs[f"conv_up{number}"], x, 0.2)
    writer.conv(convs["conv_last"], writer.conv(convs["conv_hr"], x, 0.2))
    return writer.save(folder)
