"""Computes with a loaded checkpoint, without an engine."""

import torch

from engine.llm.decision import GroupBlocks, ScheduledSequence
from engine.llm.runner.batch import Batch, lay_out
from engine.llm.runner.kv_storage import KvStorage
from engine.models.forward_context import ForwardContext
from engine.models.registry import create_model
from engine.weights.loader import iter_weights, load_model_config
from engine.weights.source import Checkpoint

CPU = torch.device("cpu")


@torch.inference_mode()
def logits(checkpoint: Checkpoint, token_ids: list[int]) -> torch.Tensor:
    """Compute our logits of a whole text in fp32, [T, V]."""
    config = load_model_config(checkpoint)
    model = create_model(config, dtype=torch.float32)
    assert model.load_weights(iter_weights(checkpoint, config)) == []
    num_blocks = -(-len(token_ids) // 4)
    groups = config.layer_groups
    storage = KvStorage(
        num_blocks=num_blocks * len(groups),
        layer_groups=[group.layers for group in groups],
        num_kv_heads=config.num_key_value_heads,
        block_size=4,
        head_dim=config.head_dim,
        dtype=torch.float32,
        device=CPU,
    )
    blocks = [
        GroupBlocks(list(range(i * num_blocks, (i + 1) * num_blocks))) for i in range(len(groups))
    ]
    batch = Batch.on(CPU, lay_out([ScheduledSequence(0, token_ids, 0, blocks, 0, 0)], 4))
    ctx = ForwardContext(
        groups=batch.groups, group_of_layer=storage.group_of_layer, kv_caches=storage.layers
    )
    return model.compute_logits(model.forward(batch.token_ids, batch.positions, ctx))
