"""A model of transformers in the form of ours."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import structlog
import torch
from torch import Tensor, nn

from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.models.causal_lm import CausalLM
from engine.models.experts_config import STACKED, parts_of_experts
from engine.models.fallback.architecture import in_words, refusal
from engine.models.fallback.attention import PAGED
from engine.models.fallback.build import BEFORE_HEAD, HEAD, build
from engine.models.fallback.comparison import compare
from engine.models.fallback.names import TensorNames
from engine.models.fallback.own_attention import unread_inputs
from engine.models.fallback.own_cache import OneByOne
from engine.models.fallback.rows import RowsApart
from engine.models.fallback.states import keep_states
from engine.models.fallback.step import in_step
from engine.models.fallback.trace import Findings
from engine.models.forward_context import NO_CONTEXT, ForwardContext, RowAdapters
from engine.models.layers.weight_slots import WeightOptions
from engine.models.loading import load_dummy_weights, load_weights
from engine.models.recurrent_config import RecurrentConfig
from engine.models.wrapped_names import unwrapped
from engine.quantization.plan import PICTURE_ENCODER
from engine.runtime.fault import is_out_of_memory
from kernels import native

LARGEST_DIFFERENCE = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.1}
"""The largest difference of hidden states from those of transformers' own attention, relative to
the latter."""
_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Names that configurations have for the number of experts."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackConfig(RecurrentConfig):
    """A configuration with the findings about the model's own code."""

    borrows_rows: ClassVar[bool] = False
    values: dict[str, Any]
    """The values of config.json."""
    names: TensorNames
    head: str
    """Path of the output layer."""
    facts: Findings
    """What the examination of the model's code has found."""

    @property
    def experts(self) -> tuple[int, int] | None:
        """See `ModelConfig.experts`; counts only experts that our layers compute."""
        counts = [self.values.get(key) for key in _NUM_EXPERTS]
        number = next((count for count in counts if isinstance(count, int)), None)
        chosen = self.values.get("num_experts_per_tok")
        if not self.names.experts or number is None or not isinstance(chosen, int):
            return None
        return (number, chosen) if 0 < chosen <= number else None

    def tensor_name(self, name: str) -> str:
        """See `ModelConfig.tensor_name`."""
        own = unwrapped(name) if self.is_wrapped else name
        if own.startswith(PICTURE_ENCODER):
            return own
        own = self.names.of(own)
        if self.head != HEAD and own.startswith(f"{HEAD}."):
            return BEFORE_HEAD + own.removeprefix(HEAD)
        return HEAD + own.removeprefix(self.head) if own.startswith(f"{self.head}.") else own

    def parts_of(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each expert's part of a stacked tensor of experts that our layers compute."""
        stacked = STACKED.fullmatch(name)
        if stacked is not None and stacked[1] in self.names.experts and tensor.ndim == 3:
            experts, layer, suffix = stacked.groups("")
            yield from parts_of_experts(experts, layer, suffix, tensor)
        else:
            yield name, tensor


class FallbackModel(CausalLM):
    """A model that runs transformers' code with our linear layers, activations and attention.

    Every forward pass runs that code in Python: steps are not recorded.
    """

    def __init__(self, config: FallbackConfig, options: WeightOptions) -> None:
        super().__init__(config, options)
        options.parallel.refuse_several(f"{config.architecture}, which runs on transformers' code,")
        self.causal: Any = build(
            config.architecture,
            config.values,
            options,
            windows=config.layer_windows,
            embedding=config.embedding,
            head=config.head,
            tied=config.tie_word_embeddings,
            experts=config.names.experts,
            attention=PAGED if config.facts.own_cache is None else "eager",
        )
        self._unread: dict[str, Any] = unread_inputs(self.causal.config)
        if config.facts.modules:
            modules = config.facts.modules
            self._unread["cache"] = keep_states(self.causal, modules, options.dtype)
        self._one_by_one: OneByOne | None = None
        if config.facts.own_cache is not None:
            self._one_by_one = OneByOne(self.causal, config.facts.own_cache, options.dtype)
        is_ours = options.device.type == "cpu" and native.missing() is None
        self._rows_apart = RowsApart() if is_ours else None
        # Kept in a tuple so that its parts do not become submodules twice.
        self._head = (_head_of(self.causal),)

    @property
    def can_be_recorded(self) -> bool:
        return False

    def forward(self, token_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        """See `CausalLM.forward`."""
        with in_step(ctx), self._rows_apart or nullcontext():
            if self._one_by_one is not None:
                return self._one_by_one.forward(token_ids, positions, ctx)
            given = {"input_ids": token_ids[None], "position_ids": positions[None], **self._unread}
            states: Tensor = self.causal.base_model(**given, use_cache=False).last_hidden_state
        return states[0]

    def forward_in_their_way(self, token_ids: Tensor, ctx: ForwardContext) -> Tensor:
        """Compute [T, C] from [T] token ids of one whole text with transformers' own attention and
        masks."""
        config = self.causal.config
        ours = config._attn_implementation
        # Falcon's eager code adds its position biases twice.
        config._attn_implementation = "sdpa" if config.model_type == "falcon" else "eager"
        try:
            mask = torch.ones_like(token_ids)[None]
            positions = torch.arange(len(token_ids), device=token_ids.device)[None]
            with in_step(ctx):
                states: Tensor = self.causal.base_model(
                    input_ids=token_ids[None],
                    position_ids=positions,
                    attention_mask=mask,
                    use_cache=False,
                ).last_hidden_state
        finally:
            config._attn_implementation = ours
        return states[0]

    def leave_out_head(self) -> None:
        """Refuse, since embeddings need a family of our own.

        Raises:
            UnsupportedArchitecture: always.
        """
        raise UnsupportedArchitecture(
            f"{self.config.architecture} runs on transformers' code, which is supported for "
            f"generating text and not for embeddings"
        )

    def compute_logits(self, hidden: Tensor, adapters: RowAdapters | None = None) -> Tensor:
        """See `CausalLM.compute_logits`."""
        with in_step(NO_CONTEXT), self._rows_apart or nullcontext():
            logits: Tensor = self._head[0](inputs_embeds=hidden[None], use_cache=False).logits
        return logits[0].float()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> list[str]:
        """See `CausalLM.load_weights`.

        Raises:
            UnsupportedArchitecture: the results on the paged cache differ from those of
                transformers' own attention.
        """
        names: TensorNames = self.config.names  # type: ignore[attr-defined]
        weights = names.rearranged(weights)
        unexpected = load_weights(self.causal, weights, self.options)
        self._check()
        return unexpected

    def load_dummy_weights(self, seed: int = 0) -> None:
        """See `CausalLM.load_dummy_weights`."""
        load_dummy_weights(self.causal, self.options, seed)

    @torch.inference_mode()
    def _check(self) -> None:
        layout = self.config.facts.own_cache  # type: ignore[attr-defined]
        try:
            found = compare(self)
            self.compute_logits(found.states)
        except Exception as error:  # transformers' code may fail in any way
            if is_out_of_memory(error):
                raise
            if layout is not None:
                raise UnsupportedArchitecture(layout.reason) from error
            raise refusal(
                self.config.architecture, f"a trial run failed: {in_words(error)}"
            ) from error
        if self._rows_apart is not None and not self._rows_apart.was_needed:
            self._rows_apart = None
        if found.difference > LARGEST_DIFFERENCE[self.options.dtype]:
            if layout is not None:
                raise UnsupportedArchitecture(layout.reason)
            raise refusal(
                self.config.architecture,
                f"its states differ by {found.difference:.1%} from those with transformers' own "
                f"attention",
            )
        if self.options.deterministic and not found.same_bits:
            raise ModelLoadError(
                f"{self.config.architecture} runs on transformers' code, in which the bits of a "
                f"text depend on the other texts of its steps; turn deterministic off"
            )
        log.warning(
            "this architecture has no implementation in Tandem and runs on transformers' code: "
            "matrix products and attention are Tandem's, but steps are not recorded and other "
            "operations are not fused, so each step is slower"
            if layout is None
            else "this architecture has no implementation in Tandem and runs on transformers' code "
            "with transformers' own cache, one token of one text at a time, so prompts and several "
            "texts at once are slow",
            architecture=self.config.architecture,
            difference=f"{found.difference:.1e}",
            same_bits_in_any_company=found.same_bits,
        )


def _head_of(causal: Any) -> Any:
    """Copy the model with `GivenStates` for a body."""
    head = copy(causal)
    body = GivenStates(causal.base_model)
    head._modules = causal._modules | {causal.base_model_prefix: body}
    return head


class GivenStates(nn.Module):
    """A body that returns the states it is given, for classes that continue from a body's states.
    Its attributes are those of the model's own."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        # Kept in a tuple so that its parts do not become submodules twice.
        self._body = (body,)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body[0], name)

    @property
    def decoder(self) -> nn.Module:
        """The body itself, for classes that ask for a part of it."""
        return self

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> Any:
        return _Output(last_hidden_state=inputs_embeds)


class _Output(SimpleNamespace):
    """A body's output, which has states and no other values."""

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: int) -> Tensor:
        states: Tensor = self.last_hidden_state
        return states
