"""A plan: what a device must do, and the memory and speed of each way to keep the model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from engine.contract.resolved_config import MachineFacts
from engine.planning.chips import Chip


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The device and the load for which a model is planned."""

    machine: MachineFacts
    """The machine; its free memory is what a worker finds just after its start."""
    process_bytes: int
    """The memory of such a worker: Python, libraries and a GPU's context."""
    device: str
    """The device in words."""
    chip: Chip | None = None
    """The chip; None if its speed is not known."""
    concurrency: int = 1
    """The number of texts or pictures at the same time."""
    context: int | None = None
    """The tokens of each text; None is as many as the model takes."""
    num_sharing: int = 1
    """The replicas that share the device. The plan is for one of them: the machine has its share of
    the memory, and the chip its share of the speed."""

    def shared_by(self, num_replicas: int, num_sharing: int) -> Self:
        """The target of one of several replicas, which share the texts."""
        free = self.machine.free_memory_bytes - (num_sharing - 1) * self.process_bytes
        chip = self.chip
        if chip is not None:
            speeds = chip.bytes_per_s / num_sharing, chip.flops / num_sharing
            chip = Chip(chip.title, chip.memory_bytes, *speeds)
        return replace(
            self,
            machine=replace(self.machine, free_memory_bytes=max(0, free) // num_sharing),
            chip=chip,
            concurrency=-(-self.concurrency // num_replicas),
            num_sharing=num_sharing,
        )

    @property
    def whole_machine(self) -> MachineFacts:
        """The machine with the memory of all who share it."""
        free = self.num_sharing * self.machine.free_memory_bytes
        return replace(self.machine, free_memory_bytes=free)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One way to keep a model."""

    quantization: str
    is_stored: bool
    """Whether the checkpoint has its weights in this format."""
    kv_cache_dtype: str | None = None
    weight_bytes: int
    read_bytes: int | None = None
    """The weights that a decode step for the wanted number of texts reads."""
    kv_bytes: int = 0
    """The KV cache of the wanted number of texts with the wanted tokens."""
    adapter_bytes: int = 0
    """The memory left for adapters: `AdapterFacts.held_bytes`."""
    step_bytes: int
    """The activations of the largest step."""
    process_bytes: int
    fits: bool
    """Whether everything fits. The process's own memory does not count, as it is already taken."""
    max_tokens: int | None = None
    """The most tokens of all texts together, for texts of that length, in the available memory."""
    decode_tokens_per_s: float | None = None
    """The speed of all texts together, if only bandwidth and arithmetic limit it."""
    prefill_tokens_per_s: float | None = None
    """The speed of a prompt of that length, with the same limits."""
    flags: list[str] = field(default_factory=list)
    """The flags of `tandem serve` for this way."""

    @property
    def total_bytes(self) -> int:
        """The memory of the worker under the planned load."""
        held = self.weight_bytes + self.kv_bytes + self.adapter_bytes
        return self.process_bytes + held + self.step_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFacts:
    """The experts of a mixture."""

    per_layer: int
    per_token: int
    per_step: float
    """The expected number of different experts of a layer that a decode step for all texts reads,
    if the router has no preference; with preferences it is smaller."""
    parameters: int
    """The number of weights of the whole model."""
    active_parameters: int
    """The number of weights that each token uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFacts:
    """The LoRA adapters that a model may have."""

    max_adapters: int
    max_slots: int
    """The most adapters in a step."""
    num_read: int
    """The number of named adapters whose headers fit the model."""
    ranks: Sequence[int] = ()
    """The ranks of these adapters."""
    place_bytes: int
    """The memory of as many of these as a step can use."""
    copy_bytes: int = 0
    """The memory of their copies, kept if they take turns and while there is memory."""
    rank_bytes: int | None = None
    """The memory of one rank of an adapter for all linear layers of the blocks; None if not
    relevant."""
    limit_bytes: int | None = None
    """The operator's limit on all memory of adapters."""
    held_bytes: int
    """The memory that the plan leaves to adapters."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """The names of adapters that cannot be served, with the reasons."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """All ways to keep a model, in the order of the formats' table."""

    model: str
    kind: str
    device: str
    replicas: int = 1
    """The workers of the model; all other numbers are for one of them."""
    free_bytes: int
    concurrency: int
    context: int | None
    experts: ExpertFacts | None = None
    adapters: AdapterFacts | None = None
    rows: Sequence[PlanRow]

    def as_json(self) -> dict[str, Any]:
        """The plan as `tandem plan --json` prints it."""
        rows = [{**asdict(row), "total_bytes": row.total_bytes} for row in self.rows]
        return {**asdict(self), "rows": rows}
