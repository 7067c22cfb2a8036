import pytest
import torch

from engine.weights.loader import iter_weights, load_model_config
from tests.helpers.models.checkpoints import num_weights


@pytest.mark.slow
def test_smollm2_equals_transformers_tensor_by_tensor(smollm2_checkpoint, smollm2_reference):
    config = load_model_config(smollm2_checkpoint)
    ours = dict(iter_weights(smollm2_checkpoint, config))
    theirs, their_config = smollm2_reference.state_dict(), smollm2_reference.config
    del theirs["lm_head.weight"]
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "max_position_embeddings",
        "tie_word_embeddings",
    ):
        assert getattr(config, name) == getattr(their_config, name), name
    assert config.rope_theta == their_config.rope_parameters["rope_theta"]
    # The file states one end; its other one is known by name.
    assert config.eos_token_ids == (their_config.eos_token_id, 0)
    assert num_weights(smollm2_checkpoint) == sum(t.numel() for t in theirs.values())
