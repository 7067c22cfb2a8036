"""A plan: what is asked of a device, and what each way to keep the model comes to. No tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.config import MachineFacts
from engine.planning.chips import Chip


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a model is planned for."""

    machine: MachineFacts
    """Its free memory is what a worker finds that has just started."""
    process_bytes: int
    """What that worker has taken by then: Python, libraries, a GPU's context."""
    device: str
    """In words."""
    chip: Chip | None = None
    """None: speeds are not known."""
    concurrency: int = 1
    """Texts, or pictures, at a time."""
    context: int | None = None
    """Tokens of each text; None: as many as the model takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One way to keep a model."""

    quantization: str
    is_stored: bool
    """The checkpoint has its weights so."""
    kv_cache_dtype: str | None = None
    weight_bytes: int
    read_bytes: int | None = None
    """Of these, by a step that decodes so many texts as were asked for."""
    kv_bytes: int = 0
    """Of so many texts with so many tokens as were asked for."""
    adapter_bytes: int = 0
    """Left to adapters: `AdapterFacts.held_bytes`."""
    step_bytes: int
    """Activations of the largest step."""
    process_bytes: int
    fits: bool
    """All of it is there, the process's own apart, which has been taken already."""
    max_tokens: int | None = None
    """The most tokens that texts of that length can have together, in the memory there is."""
    decode_tokens_per_s: float | None = None
    """Of all texts together, if only the memory's bandwidth and the products' speed bound it."""
    prefill_tokens_per_s: float | None = None
    """Of a prompt of that length, in the same sense."""
    flags: list[str] = field(default_factory=list)
    """Of `tandem serve`, to have it so."""

    @property
    def total_bytes(self) -> int:
        """Of the worker while it does what was asked for."""
        held = self.weight_bytes + self.kv_bytes + self.adapter_bytes
        return self.process_bytes + held + self.step_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFacts:
    """Of a mixture."""

    per_layer: int
    per_token: int
    per_step: float
    """Different ones of a layer that a step which decodes all texts is expected to read, where the
    router likes all equally well. One that prefers some reads fewer."""
    parameters: int
    """Of the whole model."""
    active_parameters: int
    """That each token meets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFacts:
    """Of the LoRA adapters that a model may have."""

    max_adapters: int
    max_slots: int
    """That steps have at a time."""
    num_read: int
    """Of those that are named: their headers fit the model."""
    ranks: Sequence[int] = ()
    """Theirs."""
    place_bytes: int
    """Of as many of these as steps have at a time."""
    copy_bytes: int = 0
    """Of copies of them, kept where they take turns and as long as there is memory."""
    rank_bytes: int | None = None
    """Of one rank of all linear layers of the blocks, in one place; None: of no interest."""
    limit_bytes: int | None = None
    """That the operator has set for all of it."""
    held_bytes: int
    """That the plan leaves to them."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Those that would not be served, by name, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """Every way, in the order of the formats' table."""

    model: str
    kind: str
    device: str
    free_bytes: int
    concurrency: int
    context: int | None
    experts: ExpertFacts | None = None
    adapters: AdapterFacts | None = None
    rows: Sequence[PlanRow]

    def as_json(self) -> dict[str, Any]:
        """As `tandem plan --json` prints it."""
        rows = [{**asdict(row), "total_bytes": row.total_bytes} for row in self.rows]
        return {**asdict(self), "rows": rows}
