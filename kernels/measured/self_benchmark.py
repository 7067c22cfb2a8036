"""Times products with packed and with plain weights, once per machine and compiled library.

`--quantization auto` uses the result on a CPU: the available instructions decide whether it is
faster to unpack the codes of a GGUF file at every step or once, when they are loaded.
"""

import itertools
import logging
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from kernels import machine, native
from kernels.cache_folder import cache_folder
from kernels.linear_gguf.cases import random_weight
from kernels.linear_gguf.quant_type import GGUFType
from kernels.linear_packed import PackedWeight, linear_packed
from kernels.linear_panels import Panels, linear_panels, panels_from_gguf
from kernels.measured.product_times import ROWS, ProductTimes
from kernels.measured.product_times_file import ProductTimesFile

COMMON_TYPES = (GGUFType.Q4_0, GGUFType.Q4_1, GGUFType.Q4_K, GGUFType.Q6_K, GGUFType.Q8_0)
"""The types that most files have."""

TYPE_S = 0.35
"""Processor time for one type: all common types take two seconds, including preparation."""
MIN_ROUNDS, MAX_ROUNDS = 3, 25
SIZE = 2048
"""Inputs and outputs of a product."""
NUM_WEIGHTS = 1 << 26
"""Weights that are used in turn, so that one row waits for memory as in a model. They are half as
many as the smallest model has."""
_COPIES = NUM_WEIGHTS // SIZE**2
_DIFFERENT_OUTPUTS = 64
"""Outputs that are really packed; the others are copies of these, since packing takes longer than
measuring."""

_Product = Callable[[Tensor, int], Tensor]
"""A product of rows with the copy of this number."""

log = logging.getLogger(__name__)


def product_times(
    types: Collection[GGUFType], dtype: torch.dtype
) -> Mapping[GGUFType, ProductTimes]:
    """Return times for activations of `dtype`, from the cache folder, or measured now and kept
    there.

    One thread is timed by the processor time that it gets, so other processes delay it but hardly
    change the result. All threads of a machine share its memory, so one row of packed weights gains
    more than these times show.

    Raises:
        RuntimeError: there are no C++ operations.
    """
    name = native.library_path().with_suffix(".times.json").name
    file = ProductTimesFile(cache_folder() / name, processor=machine.cpu_name())
    known = file.read()
    missing = [one for one in types if _name(one, dtype) not in known]
    if missing:
        started_s = time.monotonic()
        measured = {_name(one, dtype): found for one, found in _measured(missing, dtype)}
        log.info("measured products in %.1f s: %s", time.monotonic() - started_s, measured)
        file.add(measured)
        known |= measured
    return {one: known[_name(one, dtype)] for one in types}


def _name(quant_type: GGUFType, dtype: torch.dtype) -> str:
    return f"{quant_type.name} {str(dtype).removeprefix('torch.')}"


def _measured(
    types: Collection[GGUFType], dtype: torch.dtype
) -> Iterator[tuple[GGUFType, ProductTimes]]:
    with torch.random.fork_rng(devices=[]), _one_thread():
        plain = _copied(PackedWeight.pack(torch.randn(_DIFFERENT_OUTPUTS, SIZE).to(dtype)).data)
        inputs = [torch.randn(rows, SIZE).to(dtype) for rows in ROWS]
        for quant_type in types:
            yield quant_type, _times(_packed(quant_type), _plain(plain), inputs)


def _times(packed: _Product, plain: _Product, inputs: list[Tensor]) -> ProductTimes:
    """Return the median time of each call; they are called in turn, so that disturbances affect all
    alike."""
    seconds: dict[_Product, list[list[float]]] = {packed: [[] for _ in inputs]}
    seconds[plain] = [[] for _ in inputs]
    used_s, copies = 0.0, itertools.cycle(range(_COPIES))
    for done in range(-1, MAX_ROUNDS):
        if done >= MIN_ROUNDS and used_s > TYPE_S:
            break
        for number, x in enumerate(inputs):
            copy = next(copies)
            for product, series in seconds.items():
                start_s = time.thread_time()
                product(x, copy)
                took_s = time.thread_time() - start_s
                if done >= 0:  # the first round also maps pages
                    series[number].append(took_s)
                    used_s += took_s
    packed_s, plain_s = (
        tuple(max(1e-9, statistics.median(one)) for one in series) for series in seconds.values()
    )
    return ProductTimes(packed_s=packed_s, plain_s=plain_s, measured_at=time.time())


def _packed(quant_type: GGUFType) -> _Product:
    few = panels_from_gguf(random_weight(quant_type, _DIFFERENT_OUTPUTS, SIZE), quant_type)
    data = _copied(few.data)

    def product(x: Tensor, copy: int) -> Tensor:
        part = data[copy]
        return linear_panels(
            x, Panels(format=few.format, out_features=SIZE, in_features=SIZE, data=part)
        )

    return product


def _plain(data: Tensor) -> _Product:
    group = 2 if data.dtype is torch.bfloat16 else 1

    def product(x: Tensor, copy: int) -> Tensor:
        return linear_packed(x, PackedWeight(data[copy], SIZE, SIZE, group, SIZE))

    return product


def _copied(few: Tensor) -> Tensor:
    """Repeat the panels or strips of a few outputs to `NUM_WEIGHTS`, [copies, ...]."""
    times = SIZE // _DIFFERENT_OUTPUTS * _COPIES
    return few.repeat(times, *[1] * (few.dim() - 1)).view(_COPIES, -1, *few.shape[1:])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in the calling thread only, so that its processor time can be measured."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
