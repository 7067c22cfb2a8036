"""Tiny random models and their Hugging Face twins, and a paged cache to run ours over."""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

from engine.contract.kv_layout import KvLayout
from engine.llm.decision import GroupBlocks, RecurrentSlots, ScheduledSequence
from engine.llm.runner.batch import Batch, lay_out
from engine.llm.runner.kv_storage import KvStorage
from engine.llm.runner.model_runner import own_share
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.forward_context import ForwardContext
from engine.models.metadata_keys import MetadataKeys
from engine.models.recurrent_config import allocate_states
from engine.models.registry import create_model, family_of
from tools.tiny_models import randomise_vectors

CPU = torch.device("cpu")
NUM_SLOTS = 32
"""The slots for recurrent states."""
SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "rms_norm_eps": 1e-5,
    "attn_implementation": "eager",
}


def config_of(family: str, hf: Any) -> ModelConfig:
    """Read a Hugging Face configuration as our family does."""
    keys = MetadataKeys(hf.to_dict(), "config.json")
    return family_of(_architecture(family)).read_json(keys)


def _architecture(family: str) -> str:
    return family if family.endswith("Model") else f"{family}ForCausalLM"


def create_pair(
    family: str, seed: int | None = None, **overrides: Any
) -> tuple[CausalLM, Any, ModelConfig]:
    """Make our model and Hugging Face's with the same random weights, in fp32."""
    if seed is not None:
        torch.manual_seed(seed)
    model_class = getattr(transformers, _architecture(family))
    values = {"pad_token_id": None} | SIZES | overrides
    if values["head_dim"] is None:
        del values["head_dim"]
    hf_config = model_class.config_class(**values)
    if "head_dim" in values:
        hf_config.head_dim = values["head_dim"]
    theirs = model_class(hf_config).eval()
    randomise_vectors(theirs, 0.3)
    config = config_of(family, hf_config)
    ours = create_model(config, dtype=torch.float32)
    assert ours.load_weights(named_weights(theirs)) == []
    return ours, theirs, config


def named_weights(theirs: Any) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors of a published checkpoint, named and divided as our model wants them."""
    tied = theirs.all_tied_weights_keys
    stored = {name: one for name, one in theirs.state_dict().items() if name not in tied}
    config = config_of(type(theirs).__name__.removesuffix("ForCausalLM"), theirs.config)
    return [
        part
        for name, tensor in revert_weight_conversion(theirs, stored).items()
        for part in config.parts_of(config.tensor_name(name), tensor)
    ]


def random_text(length: int) -> list[int]:
    return [random.randrange(SIZES["vocab_size"]) for _ in range(length)]


@torch.no_grad()
def their_logits(theirs: Any, token_ids: list[int]) -> torch.Tensor:
    """Compute the Hugging Face model's logits of the whole text at once, [T, V]."""
    return theirs(torch.tensor([token_ids])).logits[0]


@dataclass
class PagedTexts:
    """Runs texts through our model piece by piece, several of them in one batch."""

    model: CausalLM
    config: ModelConfig
    block_size: int = 4
    num_blocks: int = 1024
    device: torch.device = CPU
    kv_dtype: torch.dtype | None = None
    storage: KvStorage = field(init=False)
    texts: dict[int, list[int]] = field(default_factory=dict)
    blocks: dict[int, list[list[int]]] = field(default_factory=dict)
    computed: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.storage = KvStorage(
            num_blocks=self.num_blocks,
            layer_groups=[
                own_share(g, self.model.options.parallel) for g in self.config.layer_groups
            ],
            block_size=self.block_size,
            dtype=self.kv_dtype or self.model.options.dtype,
            device=self.device,
        )
        # What earlier owners may have left.
        if self.kv_dtype is None:
            self.storage._pool.normal_()
        else:
            self.storage._pool.random_(0, 127)
        self.storage._written[:] = True
        self._free = np.random.permutation(self.num_blocks).tolist()
        self.recurrent = allocate_states(
            self.config, NUM_SLOTS, self.model.options.dtype, self.device
        )
        for tensors in self.recurrent.values():
            for tensor in tensors:
                tensor.normal_()
        self._slots: dict[int, int] = {}
        self._read: set[int | None] = set()

    def add(self, text_id: int, token_ids: list[int]) -> None:
        self.texts[text_id] = token_ids
        num_blocks = -(-len(token_ids) // self.block_size)
        self.blocks[text_id] = [
            [self._free.pop() for _ in range(num_blocks)] for _ in self.config.layer_groups
        ]
        self.computed[text_id] = 0

    @torch.inference_mode()
    def step(self, pieces: dict[int, int]) -> dict[int, torch.Tensor]:
        """Compute the next `pieces[text_id]` tokens of some texts and return their logits, [n,
        V]."""
        self._read.clear()
        scheduled = [
            ScheduledSequence(
                text_id,
                self.texts[text_id][self.computed[text_id] :][:size],
                self.computed[text_id],
                self._blocks_in_sight(text_id),
                num_draws=0,
                num_output_tokens=0,
                recurrent=self._next_slots(text_id),
            )
            for text_id, size in pieces.items()
        ]
        rows = lay_out(scheduled, self.block_size)
        batch = Batch.on(self.device, rows)
        self.storage.clear(rows.entered_block_ids)
        ctx = ForwardContext(
            groups=batch.groups,
            group_of_layer=self.storage.group_of_layer,
            kv_caches=self.storage.layers,
            kv_scales=self.storage.scales,
            recurrent=batch.recurrent,
            recurrent_states=self.recurrent,
        )
        hidden = self.model.forward(batch.token_ids, batch.positions, ctx)
        logits = self.model.compute_logits(hidden)
        result = {}
        for (sequence, *_), first in zip(rows.spans, rows.first_rows, strict=True):
            size = len(sequence.token_ids)
            result[sequence.seq_id] = logits[first : first + size]
            self.computed[sequence.seq_id] += size
        return result

    def share(self, text_id: int, other: int, num_tokens: int) -> None:
        """Let another text begin with the blocks of one whose first `num_tokens` tokens, whole
        blocks, are computed."""
        num_blocks = num_tokens // self.block_size
        for theirs, ours in zip(self.blocks[other], self.blocks[text_id], strict=True):
            theirs[:num_blocks] = ours[:num_blocks]
        self.computed[other] = self.computed[text_id]
        if text_id in self._slots:
            self._slots[other] = self._slots[text_id]

    def _next_slots(self, text_id: int) -> RecurrentSlots | None:
        """Return slots for a text's next step, which may write to the slot that it reads."""
        if not self.recurrent:
            return None
        before = self._slots.get(text_id)
        held: list[int | None] = [*self._slots.values()]
        free = sorted({*range(NUM_SLOTS)} - {*held} - self._read)
        self._read.add(before)
        after = random.choice(
            [*free, *([before] if before is not None and held.count(before) == 1 else [])]
        )
        self._slots[text_id] = after
        return RecurrentSlots(before, after)

    def _blocks_in_sight(self, text_id: int) -> list[GroupBlocks]:
        """Return a text's blocks without those that the layers' windows have passed, as in the
        engine."""
        windows = self.config.group_windows
        layout = KvLayout(block_size=self.block_size, windows=windows)
        unseen = [layout.num_unseen(window, self.computed[text_id]) for window in windows]
        groups = zip(self.blocks[text_id], unseen, strict=True)
        return [GroupBlocks(block_ids[first:], first) for block_ids, first in groups]

    def run(self, text_id: int, sizes: list[int]) -> torch.Tensor:
        """Run one text alone in pieces of these sizes and return its logits, [T, V]."""
        return torch.cat([self.step({text_id: size})[text_id] for size in sizes])


def run_alone(
    model: CausalLM, config: ModelConfig, token_ids: list[int], sizes: list[int], **how: Any
) -> torch.Tensor:
    """Run a text through our model in pieces of these sizes and return its logits, [T, V]."""
    texts = PagedTexts(model, config, **how)
    texts.add(0, token_ids)
    return texts.run(0, sizes)


def error_of_bf16(family: str, **overrides: Any) -> float:
    """The largest error of our logits in bf16, relative to the largest logit."""
    _, theirs, config = create_pair(family, **overrides)
    text = random_text(40)
    expected = their_logits(theirs, text)
    half = create_model(config, dtype=torch.bfloat16)
    half.load_weights(named_weights(theirs))
    found = run_alone(half, config, text, [33] + [1] * 7).float()
    return float((found - expected).abs().max() / expected.abs().max())
