"""The additional configuration of families with experts."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from engine.models.config import MAX_LAYERS, ModelConfig
from engine.models.gguf_keys import GgufKeys
from engine.models.layers.experts import SOFTMAX, Scores, SharedExpert
from engine.models.metadata_keys import MetadataKeys

MAX_EXPERTS = 4096
"""The most experts of a layer; published models have up to 512."""
STACKED = re.compile(r"(.+\.mlp\.experts)\.(gate_up|down)_proj(_scale_inv)?")


@dataclass(frozen=True, kw_only=True)  # without slots, for classes that also derive from another
class ExpertsConfig(ModelConfig):
    """A configuration with experts. `intermediate_size` is that of layers without experts."""

    num_experts: int
    """0 if no layer has any."""
    experts_per_token: int
    expert_size: int
    """Inner size of an expert."""
    normalised: bool
    """Whether the chosen experts' weights are scaled to the sum of 1."""
    plain_layers: frozenset[int] = frozenset()
    """The layers without experts."""
    scores: Scores = SOFTMAX
    shared: SharedExpert | None = None

    @property
    def experts(self) -> tuple[int, int] | None:
        return (self.num_experts, self.experts_per_token) if self.num_experts else None

    def parts_of(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each expert's part of a stacked tensor, as Qwen3.5 has them; those of Qwen3-VL are
        also transposed."""
        stacked = STACKED.fullmatch(name)
        if stacked is None or tensor.ndim != 3:
            yield name, tensor
            return
        experts, layer, suffix = stacked.groups("")
        rows, columns = self.hidden_size, self.expert_size
        if layer == "gate_up":
            rows, columns = 2 * columns, rows
        if tensor.shape[1] * columns != tensor.shape[2] * rows:
            tensor = tensor.mT
        yield from parts_of_experts(experts, layer, suffix, tensor)


def parts_of_experts(
    experts: str, layer: str, suffix: str, tensor: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """Yield each expert's part of the stacked tensor of a layer, `gate_up` or `down`."""
    for number, part in enumerate(tensor):
        if layer == "down":
            yield f"{experts}.{number}.down_proj.weight{suffix}", part
        else:
            gate, up = part.tensor_split(2)
            yield f"{experts}.{number}.gate_proj.weight{suffix}", gate
            yield f"{experts}.{number}.up_proj.weight{suffix}", up


def expert_row_counts(config: ModelConfig) -> tuple[int, ...]:
    """Row counts of a step at which a GPU changes how it divides products over experts
    (`kernels/experts/triton_linear.py`): by the number of pairs of row and expert, and by the rows
    per expert on average."""
    if config.experts is None:
        return ()
    number, per_token = config.experts
    return tuple(sorted({pairs // per_token + 1 for pairs in (64, 16 * number, 64 * number)}))


def json_expert_fields(
    keys: MetadataKeys, *, num_experts: int, chosen: int, expert_size: int
) -> dict[str, Any]:
    """Read the fields of `ExpertsConfig` from config.json, all but `normalised`. The arguments are
    the values of missing keys."""
    num_experts = keys.integer("num_experts", None, high=MAX_EXPERTS) or keys.integer(
        "num_local_experts", num_experts, high=MAX_EXPERTS
    )
    return {
        "num_experts": num_experts,
        "experts_per_token": keys.integer("num_experts_per_tok", chosen, high=num_experts),
        "expert_size": keys.integer("moe_intermediate_size", expert_size),
        "plain_layers": _plain_layers(keys),
    }


def expert_groups(
    keys: MetadataKeys,
    num_experts: int,
    chosen: int,
    key: str = "n_group",
    used_key: str = "topk_group",
) -> tuple[int, int] | None:
    """Read the number of groups of experts and how many of them a token may use; None for a single
    group."""
    number = keys.integer(key, 1, high=num_experts)
    size = num_experts // number
    if number > 1 and (size < 2 or num_experts % number):
        raise keys.nonsense(key, f"a divisor of the {num_experts} experts, at most half of them")
    used = keys.integer(used_key, 1, high=number)
    if used * size < chosen:
        raise keys.nonsense(
            used_key, f"{-(-chosen // size)} or more, as {chosen} experts are chosen"
        )
    return (number, used) if number > 1 else None


def first_plain_layers(keys: MetadataKeys, default: int = 1) -> frozenset[int]:
    """Return the layers without experts: those that `mlp_layer_types` calls dense, or the first
    ones.

    Args:
        default: the number of first ones where a file lacks it.
    """
    types = keys.values.get("mlp_layer_types")
    if types is None:
        return frozenset(
            range(keys.integer("first_k_dense_replace", default, low=0, high=MAX_LAYERS))
        )
    num_layers = keys.integer("num_hidden_layers", high=MAX_LAYERS)
    if not isinstance(types, list) or len(types) != num_layers:
        raise keys.nonsense("mlp_layer_types", f"a list of {num_layers} entries")
    return frozenset(layer for layer, entry in enumerate(types) if entry == "dense")


def gated_shared_expert(keys: MetadataKeys, inner: int) -> SharedExpert:
    """Read the expert that all tokens of Qwen's mixtures pass; `inner` is the size where a file
    lacks it."""
    inner = keys.integer("shared_expert_intermediate_size", inner)
    return SharedExpert("shared_expert", inner, gated=True)


def _plain_layers(keys: MetadataKeys) -> frozenset[int]:
    """Return the layers without experts. Every `decoder_sparse_step`-th layer has experts, unless
    `mlp_only_layers` names it."""
    step = keys.integer("decoder_sparse_step", 1)
    named = keys.values.get("mlp_only_layers") or []
    if not isinstance(named, list) or not all(isinstance(layer, int) for layer in named):
        raise keys.nonsense("mlp_only_layers", "a list of layer numbers")
    num_layers = keys.integer("num_hidden_layers", high=MAX_LAYERS)
    between = (layer for layer in range(num_layers) if (layer + 1) % step)
    return frozenset(between) | frozenset(named)


def gguf_expert_fields(keys: GgufKeys, expert_size: int) -> dict[str, Any]:
    """Read the fields of `ExpertsConfig`.

    Args:
        expert_size: the value of a missing key.
    """
    num_experts = keys.integer(keys.own("expert_count"), high=MAX_EXPERTS)
    return {
        "num_experts": num_experts,
        "experts_per_token": keys.integer(keys.own("expert_used_count"), high=num_experts),
        "expert_size": keys.integer(keys.own("expert_feed_forward_length"), expert_size),
    }
