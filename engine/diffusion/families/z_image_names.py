"""The original release's names of Z-Image's modules; it fuses queries, keys and values."""

from collections.abc import Mapping
from typing import Any

from engine.diffusion.families.original_names import OriginalNames


def original_names(config: Mapping[str, Any]) -> OriginalNames:
    """The original names of a transformer.

    Args:
        config: the transformer's config, with its numbers of blocks.
    """
    modules: dict[str, tuple[str, ...]] = {
        "x_embedder": ("all_x_embedder.2-1",),
        "final_layer.linear": ("all_final_layer.2-1.linear",),
        "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
    }
    num_refiners = int(config["n_refiner_layers"])
    counts = {"layers": int(config["n_layers"])}
    counts |= dict.fromkeys(("noise_refiner", "context_refiner"), num_refiners)
    for kind, num_blocks in counts.items():
        for number in range(num_blocks):
            attention = f"{kind}.{number}.attention"
            modules[f"{attention}.qkv"] = tuple(f"{attention}.to_{letter}" for letter in "qkv")
            modules[f"{attention}.out"] = (f"{attention}.to_out.0",)
            modules |= {f"{attention}.{c}_norm": (f"{attention}.norm_{c}",) for c in "qk"}
    return OriginalNames(modules=modules, unused=frozenset(("norm_final.weight",)))
