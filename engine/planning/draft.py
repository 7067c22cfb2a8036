"""A draft model beside a text model: whether it can guess for it, and what it takes."""

from dataclasses import dataclass, replace
from pathlib import Path

from engine.config import EngineConfig, MachineFacts, ModelFacts
from engine.errors import ModelLoadError, ModelNotFound
from engine.models.config import ModelConfig
from engine.planning.facts import text_facts
from engine.text.same_tokens import check_same_tokens
from engine.text.tokenizer import load_tokenizer
from engine.weights.loader import load_model_config
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
        """The facts of a model that has this one beside it.

        Its cache has room for as many tokens as the model's own. Blocks are of a group of layers,
        so there are more of them, or fewer, as it has groups.
        """
        num_groups, num_own = len(model.kv_windows), len(self.facts.kv_windows)
        per_token = -(-self.facts.kv_bytes_per_token * num_own // num_groups)
        return replace(
            model,
            weight_bytes=model.weight_bytes + self.facts.weight_bytes,
            draft_kv_bytes_per_token=per_token,
        )

    def with_cache(self, intent: EngineConfig) -> "DraftPlan":
        """The same with the kind of KV cache that a configuration asks for."""
        return replace(self, facts=text_facts(self.weights, self.config, intent))

    def num_kv_blocks(self, num_blocks: int, model_config: ModelConfig) -> int:
        """Of its own cache, beside so many of the model's."""
        num_groups, num_own = len(model_config.layer_groups), len(self.config.layer_groups)
        return max(1, num_blocks * num_own // num_groups)


def _found(ref: str) -> Checkpoint:
    """
    Raises:
        ModelLoadError: it cannot be used; the message says that it is about this setting.
    """
    try:
        return resolve_source(
            ref, cache_dir=Path(), offline=True, on_progress=lambda fraction, line: None
        )
    except ModelNotFound as error:
        name = ref.rstrip("/").rpartition("/")[2][:80]
        raise ModelNotFound(
            f"speculative_model is {name!r}, and there is no such folder or .gguf file on this "
            f"machine, nor such a model in the hub's cache",
            param="speculative_model",
        ) from error
    except ModelLoadError as error:
        message = f"speculative_model cannot be used: {error.message}"
        raise type(error)(message, param="speculative_model") from error


def plan_draft(
    checkpoint: Checkpoint, model_config: ModelConfig, intent: EngineConfig, machine: MachineFacts
) -> DraftPlan | None:
    """What `speculative_model` of a model's configuration comes to, if it names one: a file or a
    folder of this machine.

    Raises:
        ModelLoadError: it cannot be used, or not for this model.
    """
    if intent.speculative_model is None:
        return None
    found = _found(intent.speculative_model)
    if found.kind not in ("folder", "gguf"):
        raise ModelLoadError(
            f"speculative_model {found.name!r} is no text model; name one with the same tokens as "
            f"{checkpoint.name!r}",
            param="speculative_model",
        )
    config = load_model_config(found).within(intent.max_model_len)
    if found.path.resolve() != checkpoint.path.resolve():
        check_same_tokens(
            load_tokenizer(checkpoint.path),
            load_tokenizer(found.path),
            min(model_config.vocab_size, config.vocab_size),
        )
    as_draft = replace(intent, quantization=intent.speculative_quantization)
    weights = plan_weights(found, config, as_draft, machine)
    return DraftPlan(found, config, weights, text_facts(weights, config, intent))
