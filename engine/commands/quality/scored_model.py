"""A text model that gives the distribution of every token of a passage."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.contract.host import Host
from engine.contract.operations import GENERATE
from engine.contract.status import Phase
from engine.contract.text_settings import TextSettings
from engine.errors import InvalidParameter, UnsupportedFeature
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.whole_texts import WholeTexts
from engine.runtime.device import PACKED_KV_DTYPES, machine_facts, torch_dtype
from engine.runtime.fault import sizes_within_memory
from engine.runtime.operations import build_operations
from engine.runtime.threads import limit_threads
from engine.text.scores.passages import Passage, ScoredFile, cut_passages, start_token
from engine.text.tokenizer import Tokenizer, load_tokenizer
from engine.weights.decoder import load_decoder
from engine.weights.loader import load_model_config
from engine.weights.quality_record import Kept
from engine.weights.recognition import kind_of_checkpoint
from engine.weights.source import Checkpoint, resolve_source
from engine.weights.weight_plan import WeightPlan, plan_within_memory
from kernels.shared.transfer import Milestone


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A text model whose weights have not been read yet."""

    checkpoint: Checkpoint
    config: ModelConfig
    tokenizer: Tokenizer

    def passages(self, text: str, file: ScoredFile) -> list[Passage]:
        """The passages of the file's text.

        Raises:
            InvalidParameter: the text is shorter than a passage, or a passage is longer than the
                model takes.
        """
        longest = self.config.max_position_embeddings
        if file.context > longest:
            raise InvalidParameter(
                f"a passage has {file.context} tokens; the model takes at most {longest}; give a "
                f"smaller --context"
            )
        token_ids = self.tokenizer.encode_literally(text)
        probe = [self.tokenizer.encode("a", add_special_tokens=added) for added in (True, False)]
        pieces = [self.tokenizer.token_bytes(token_id) for token_id in token_ids]
        return cut_passages(token_ids, pieces, start=start_token(*probe), file=file)


def find_model(
    ref: str, config: TextSettings, host: Host, cache: Path, offline: bool
) -> FoundModel:
    """Find a text model's files, or fetch them.

    Raises:
        ModelLoadError: the model cannot be found or read.
        UnsupportedFeature: it does not make text.
    """
    checkpoint = resolve_source(
        ref,
        cache_dir=cache,
        offline=offline,
        on_progress=lambda fraction, line: host.report(Phase.DOWNLOADING, fraction, line),
    )
    kind = kind_of_checkpoint(checkpoint, config.kind)
    if GENERATE not in kind.operations:
        raise UnsupportedFeature(
            f"{checkpoint.name} makes {kind.main.makes}; only text models have a perplexity"
        )
    tokenizer = load_tokenizer(checkpoint.path)
    return FoundModel(checkpoint, load_model_config(checkpoint), tokenizer)


class ScoredModel:
    """A loaded text model. Counts the model's own time, not that of comparing results."""

    def __init__(self, model: CausalLM, kept: Kept, weight_bytes: int, max_tokens: int) -> None:
        self.kept = kept
        self.weight_bytes = weight_bytes
        self.device = model.options.device
        self.seconds = 0.0
        self._model = model
        self._texts = WholeTexts(
            model,
            max_tokens=max_tokens,
            max_texts=1,
            kv_dtype=PACKED_KV_DTYPES.get(kept.kv_cache_dtype),
        )

    def states(self, token_ids: Sequence[int]) -> Tensor:
        """The states [T, C]; row i is that after token i."""
        start = time.perf_counter()
        return self._counted(self._texts.states([token_ids]), start)

    def logits(self, states: Tensor) -> Tensor:
        """The logits [R, V] in fp32 of states [R, C]."""
        start = time.perf_counter()
        # Copied, as a kernel would be compiled again for rows that start at an odd address.
        return self._counted(self._model.compute_logits(states.clone()), start)

    def _counted(self, result: Tensor, start: float) -> Tensor:
        Milestone(self.device).wait()
        self.seconds += time.perf_counter() - start
        return result


def load_model(found: FoundModel, intent: TextSettings, host: Host, max_tokens: int) -> ScoredModel:
    """Load a model with its weights kept as in an engine.

    Args:
        max_tokens: the most tokens of a passage.

    Raises:
        ModelLoadError: the model cannot be loaded.
    """
    machine = machine_facts(intent.device)
    if machine.device == "cpu":
        build_operations(host)
    limit_threads(intent.num_threads or machine.num_cores)
    dtype = torch_dtype(intent.model_dtype)

    def reserve(plan: WeightPlan) -> None:
        host.reserve(
            machine.device, "weights", plan.num_bytes(dtype.itemsize), machine.free_memory_bytes
        )

    plan, _ = plan_within_memory(found.checkpoint, found.config, intent, machine, reserve)
    with sizes_within_memory():
        model = load_decoder(
            found.checkpoint,
            plan,
            found.config,
            host,
            dtype=dtype,
            device=torch.device(machine.device),
            deterministic=intent.deterministic,
        )
    kept = Kept(
        quantization=plan.quantization,
        dtype=intent.model_dtype,
        kv_cache_dtype=intent.resolved_kv_cache_dtype,
    )
    return ScoredModel(model, kept, plan.num_bytes(dtype.itemsize), max_tokens)
