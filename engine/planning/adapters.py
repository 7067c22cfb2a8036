"""Plans the memory of a text model's LoRA adapters from the headers of their files."""

import os
from heapq import nlargest
from pathlib import Path
from typing import NamedTuple

from engine.contract.text_settings import TextSettings
from engine.lora.loaded_adapters import cause_of
from engine.lora.numbers import AdapterNumbers
from engine.lora.peft_files import AdapterSize, ModelShapes, plan_adapter
from engine.lora.slots import Room
from engine.models.config import ModelConfig
from engine.planning.report import AdapterFacts
from engine.quantization.plan import OUTPUT_LAYER
from engine.runtime.device import torch_dtype
from engine.weights.weight_plan import WeightPlan
from kernels.lora_gather.packed import RANKS


class AdaptersRead(NamedTuple):
    """The contents of the headers of a model's adapters."""

    shapes: ModelShapes
    sizes: list[AdapterSize]
    failed: dict[str, str]
    """The names of adapters that cannot be used, with the reasons."""


def read_adapters(kept: WeightPlan, config: ModelConfig, intent: TextSettings) -> AdaptersRead:
    """Read the headers of the configured adapters. The format of the weights does not matter."""
    dtype = torch_dtype(intent.model_dtype)
    shapes = model_shapes(kept, config)
    sizes: list[AdapterSize] = []
    failed: dict[str, str] = {}
    for name, folder in intent.adapters.items():
        try:
            sizes.append(plan_adapter(Path(os.path.expanduser(folder)), shapes, dtype).size)
        except Exception as error:  # whatever is wrong with a file, the model is still planned
            failed[name] = cause_of(error, name).message
    return AdaptersRead(shapes, sizes, failed)


def adapter_facts(
    read: AdaptersRead, intent: TextSettings, device: str, quantization: str
) -> AdapterFacts | None:
    """The memory of adapters for weights in this format. None: the model may have no adapters."""
    if not intent.max_adapters:
        return None
    shapes, sizes, failed = read
    is_packed = intent.has_packed_adapters(device, quantization)
    numbers = AdapterNumbers(torch_dtype(intent.model_dtype), is_packed)
    # As many adapters as can be used at once, with the largest of each kind among them.
    count = min(len(sizes), intent.max_adapter_slots)
    arrays = Room.of(count, [size.needs for size in sizes]).num_bytes(shapes, numbers)
    own = nlargest(count, (size.copy_bytes for size in sizes))
    copies = 0
    if intent.max_adapter_slots < intent.max_adapters or intent.adapter_bytes is not None:
        alone = (Room.of(1, [size.needs]).num_bytes(shapes, numbers) for size in sizes)
        copies = sum(alone) + sum(size.copy_bytes for size in sizes)
    places = arrays + sum(own)
    return AdapterFacts(
        max_adapters=intent.max_adapters,
        max_slots=intent.max_adapter_slots,
        num_read=len(sizes),
        ranks=sorted({need.rank for size in sizes for need in size.needs.values()}),
        place_bytes=places,
        copy_bytes=copies,
        rank_bytes=sum(
            numbers.num_bytes(RANKS, size) // RANKS
            for name, shape in shapes.linear.items()
            if ".layers." in name
            for size in shape
        ),
        limit_bytes=intent.adapter_bytes,
        held_bytes=places if intent.adapter_bytes is None else intent.adapter_bytes,
        failed=failed,
    )


def model_shapes(kept: WeightPlan, config: ModelConfig) -> ModelShapes:
    """The layers that adapters may change, from a checkpoint's headers."""
    shapes: dict[str, tuple[int, ...]] = {
        name.removesuffix(".weight"): shape
        for name, shape in kept.shapes.items()
        if name.endswith(".weight") and ".experts." not in name
    }
    shapes |= {
        name: (one.out_features, one.in_features)
        for name, one in kept.layers.items()
        if ".experts." not in name
    }
    ends = (config.vocab_size, config.hidden_size)
    shapes |= {kept.embedding: ends, OUTPUT_LAYER: ends}
    matrices = {name: (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2}
    del matrices[kept.embedding]
    tables = {name: matrices.pop(name)[::-1] for name in kept.tables if name in matrices}
    norms = {name: shape for name, shape in shapes.items() if len(shape) == 1}
    return ModelShapes(
        matrices,
        tables={kept.embedding: (config.hidden_size, config.vocab_size), **tables},
        copies={**norms, kept.embedding: ends, OUTPUT_LAYER: ends},
    )
