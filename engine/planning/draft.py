"""Plans a draft model for a text model: whether it can guess for it, and its memory."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from engine.contract.kinds import KINDS
from engine.contract.resolved_config import MachineFacts, ModelFacts
from engine.contract.text_settings import TextSettings
from engine.errors import UnsupportedArchitecture
from engine.models.config import ModelConfig
from engine.planning.facts import text_facts
from engine.text.same_tokens import check_same_tokens
from engine.text.tokenizer import load_tokenizer
from engine.weights.loader import load_model_config
from engine.weights.recognition import further_model
from engine.weights.source import Checkpoint, resolve_source
from engine.weights.weight_plan import WeightPlan, plan_weights


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """How a draft model will be kept."""

    checkpoint: Checkpoint
    config: ModelConfig
    weights: WeightPlan
    facts: ModelFacts

    def beside(self, model: ModelFacts) -> ModelFacts:
        """A model's facts with those of this draft model added.

        The draft model's cache has room for as many tokens as the model's own. Its number of blocks
        depends on its own number of layer groups.
        """
        num_groups, num_own = len(model.kv_windows), len(self.facts.kv_windows)
        per_token = -(-self.facts.kv_bytes_per_token * num_own // num_groups)
        return replace(
            model,
            weight_bytes=model.weight_bytes + self.facts.weight_bytes,
            draft_kv_bytes_per_token=per_token,
        )

    def with_cache(self, intent: TextSettings) -> "DraftPlan":
        """A copy with the kind of KV cache that a configuration asks for."""
        return replace(self, facts=text_facts(self.weights, self.config, intent))

    def num_kv_blocks(self, num_blocks: int, model_config: ModelConfig) -> int:
        """The blocks of its own cache, given the number of the model's blocks."""
        num_groups, num_own = len(model_config.layer_groups), len(self.config.layer_groups)
        return max(1, num_blocks * num_own // num_groups)


def plan_draft(
    checkpoint: Checkpoint, model_config: ModelConfig, intent: TextSettings, machine: MachineFacts
) -> DraftPlan | None:
    """The plan for the model that `speculative_model` names, a file or folder of this machine; None
    if the setting is not used.

    Raises:
        ModelLoadError: it cannot be used at all, or not for this model.
    """
    if intent.speculative_model is None:
        return None
    fetch = partial(
        resolve_source,
        cache_dir=Path(),
        offline=True,
        on_progress=lambda fraction, line: None,
    )
    found = further_model("speculative_model", intent.speculative_model, KINDS["text"], fetch)
    config = load_model_config(found).within(intent.max_model_len)
    if found.path.resolve() != checkpoint.path.resolve():
        check_same_tokens(
            load_tokenizer(checkpoint.path),
            load_tokenizer(found.path),
            min(model_config.vocab_size, config.vocab_size),
        )
    if config.recurrent_bytes(1):
        raise UnsupportedArchitecture(
            f"speculative_model {found.name} has recurrent states, which draft models cannot have; "
            f"name a model whose layers all attend",
            param="speculative_model",
        )
    as_draft = replace(intent, quantization=intent.speculative_quantization)
    weights = plan_weights(found, config, as_draft, machine)
    return DraftPlan(found, config, weights, text_facts(weights, config, intent))
