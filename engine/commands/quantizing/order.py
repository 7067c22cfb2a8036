"""A whole order: find the model's files, choose the writer, and put the checkpoint in its place."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.commands.quantizing.gguf_file import gguf_types, write_gguf
from engine.commands.quantizing.gptq_model import write_with_gptqmodel
from engine.commands.quantizing.rounded import write_rounded
from engine.contract.host import Tell
from engine.contract.orders import QuantizingOrder
from engine.contract.status import Phase
from engine.errors import InvalidParameter
from engine.processes.telling_host import TellingHost
from engine.weights.source import Checkpoint, resolve_source

GGUF = "gguf-"
"""The beginning of a method's name; one of llama.cpp's types follows, such as q4_k_m."""
BITS = {"int4": 4, "int8": 8}
"""Bits of the methods that round to nearest."""
CALIBRATED_BITS = {"gptq": (2, 3, 4, 8), "awq": (4,)}


def carry_out(order: QuantizingOrder, tell: Tell) -> dict[str, Any]:
    """Carry out an order and return the report that `tandem quantize --json` prints.

    Raises:
        EngineError: the order is impossible; the message says why.
    """
    write = _writer(order)
    if os.path.lexists(order.output):
        raise InvalidParameter(
            f"{order.output.name} exists already and is not overwritten; give another --output",
            param="output",
        )
    if not order.output.absolute().parent.is_dir():
        raise InvalidParameter(
            f"the folder for {order.output.name} does not exist; create it first", param="output"
        )
    host = TellingHost(tell)
    checkpoint = resolve_source(
        order.model,
        cache_dir=order.cache_dir,
        offline=order.offline,
        on_progress=lambda fraction, line: host.report(Phase.DOWNLOADING, fraction, line),
    )
    unfinished = order.output.with_name(f".{order.output.name}.{os.getpid()}")
    try:
        facts = write(checkpoint, unfinished, tell)
        os.rename(unfinished, order.output)
    except OSError as error:
        raise InvalidParameter(
            f"{order.output.name} cannot be written: {error.strerror}", param="output"
        ) from error
    finally:
        _remove(unfinished)
    return {
        "model": checkpoint.name,
        "method": order.method,
        "output": str(order.output),
        "bytes_before": size_of(checkpoint.path),
        "bytes_after": size_of(order.output),
        **facts,
    }


def size_of(path: Path) -> int:
    """Return the size of a file, or of the weights in a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


Write = Callable[[Checkpoint, Path, Tell], dict[str, Any]]


def _writer(order: QuantizingOrder) -> Write:
    """Choose the writer of an order.

    Raises:
        InvalidParameter: the method is unknown, or does not fit the other options.
    """
    method, bits, group_size = order.method, order.bits, order.group_size
    if method in CALIBRATED_BITS:
        if order.calibration is None:
            raise InvalidParameter(
                f"{method} needs a calibration text; give one like your own with --calibration "
                f"FILE",
                param="calibration",
            )
        wanted, file = bits or 4, order.calibration
        _check_bits(method, wanted, CALIBRATED_BITS[method])
        return lambda checkpoint, folder, tell: write_with_gptqmodel(
            checkpoint,
            folder,
            tell,
            method=method,
            bits=wanted,
            wanted_group=group_size,
            calibration=file,
        )
    if order.calibration is not None:
        raise InvalidParameter(
            f"{method} does not use --calibration; leave it out (gptq and awq need it)",
            param="calibration",
        )
    if method in BITS:
        _check_bits(method, bits or BITS[method], (BITS[method],))
        return lambda checkpoint, folder, tell: write_rounded(
            checkpoint, folder, tell, bits=BITS[method], wanted_group=group_size
        )
    quant_type = method.removeprefix(GGUF)
    if quant_type == method or quant_type.upper() not in gguf_types():
        known = ", ".join([*BITS, *CALIBRATED_BITS, *(GGUF + t.lower() for t in gguf_types())])
        raise InvalidParameter(f"method is {method!r}; it must be one of {known}", param="method")
    if bits is not None or group_size is not None:
        raise InvalidParameter(
            f"{method} has fixed bits and group size; leave --bits and --group-size out",
            param="bits" if bits is not None else "group_size",
        )
    return lambda checkpoint, file, tell: write_gguf(checkpoint, file, tell, quant_type.upper())


def _check_bits(method: str, bits: int, possible: tuple[int, ...]) -> None:
    if bits not in possible:
        raise InvalidParameter(
            f"bits is {bits}; for {method} it must be {' or '.join(map(str, possible))}",
            param="bits",
        )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
