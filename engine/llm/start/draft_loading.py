"""Loads a draft model (`engine.llm.drafts.draft_model`) beside the model that it guesses for."""

from dataclasses import dataclass, replace

import structlog
import torch

from engine.contract.host import Host
from engine.contract.resolved_config import ResolvedConfig
from engine.llm.drafts.draft_model import DraftModel
from engine.llm.runner.model_runner import ModelRunner
from engine.llm.runner.runner_factory import create_runner
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.planning.draft import DraftPlan
from engine.runtime.device import torch_dtype
from engine.runtime.fault import sizes_within_memory
from engine.weights.decoder import load_decoder

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedDraft:
    """A draft model's weights, and the plan for its cache."""

    plan: DraftPlan
    model: CausalLM

    def runner(self, config: ResolvedConfig, model_config: ModelConfig) -> ModelRunner:
        """Create a runner with a cache beside the model's.

        Args:
            config, model_config: those of the model that it guesses for.
        """
        return create_runner(self.model, self.plan.config, self._config(config, model_config))

    def drafter(self, config: ResolvedConfig, model_config: ModelConfig) -> DraftModel:
        """Create a drafter that is ready to draft, with the arguments of `runner`."""
        runner = self.runner(config, model_config)
        runner.warm_up()
        return DraftModel(
            self._config(config, model_config),
            runner,
            windows=self.plan.config.group_windows,
            vocab_size=self.plan.config.vocab_size,
            target_vocab_size=model_config.vocab_size,
        )

    def _config(self, config: ResolvedConfig, model_config: ModelConfig) -> ResolvedConfig:
        return replace(
            config,
            quantization=self.plan.weights.quantization,
            max_model_len=min(config.max_model_len, self.plan.config.max_position_embeddings),
            num_kv_blocks=self.plan.num_kv_blocks(config.num_kv_blocks, model_config),
        )


def load_draft(plan: DraftPlan, config: ResolvedConfig, host: Host) -> LoadedDraft:
    """Read a draft model's weights, for which memory is already reserved.

    Raises:
        ModelLoadError: one of its kinds.
    """
    with sizes_within_memory():
        model = load_decoder(
            plan.checkpoint,
            plan.weights,
            plan.config,
            host,
            dtype=torch_dtype(config.dtype),
            device=torch.device(config.device),
            deterministic=config.deterministic,
        )
    log.info(
        "draft model loaded",
        draft=plan.checkpoint.name,
        quantization=plan.weights.quantization,
        weight_bytes=plan.facts.weight_bytes,
    )
    return LoadedDraft(plan, model)
