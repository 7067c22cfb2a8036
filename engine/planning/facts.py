"""The facts from which a text model's memory is sized."""

from engine.contract.kv_numbers import KvNumbers
from engine.contract.resolved_config import ModelFacts, num_recurrent_slots
from engine.contract.text_settings import TextSettings
from engine.models.config import ModelConfig
from engine.runtime.device import torch_dtype
from engine.weights.weight_plan import WeightPlan


def text_facts(plan: WeightPlan, config: ModelConfig, intent: TextSettings) -> ModelFacts:
    """The facts of a weight plan, for plans and for loaded models; bytes are those of all ranks
    together."""
    number_bytes = torch_dtype(intent.model_dtype).itemsize
    pictures, ranks = config.pictures, intent.tensor_parallel_size
    kept_bytes = 0 if pictures is None else pictures.kept_bytes(config.state_size * number_bytes)
    return ModelFacts(
        max_position_embeddings=config.max_position_embeddings,
        kv_bytes_per_token=config.kv_bytes_per_token(KvNumbers(intent.resolved_kv_cache_dtype))
        * _copies_of_heads(config, ranks),
        kv_windows=config.group_windows,
        weight_bytes=plan.num_bytes(number_bytes)
        + (ranks - 1) * plan.whole_bytes(number_bytes)
        + kept_bytes
        + state_bytes(config, intent),
        recurrent_bytes=config.recurrent_bytes(number_bytes),
    )


def _copies_of_heads(config: ModelConfig, ranks: int) -> int:
    """The number of ranks that have the same key/value heads."""
    return max(*(ranks // max(1, group.shape.num_heads) for group in config.layer_groups), 1)


def state_bytes(config: ModelConfig, intent: TextSettings) -> int:
    """The bytes of the recurrent states of all texts that may run, and of the padding in recorded
    steps."""
    number_bytes = torch_dtype(intent.model_dtype).itemsize
    return (num_recurrent_slots(intent) + intent.record_steps) * config.recurrent_bytes(
        number_bytes
    )
