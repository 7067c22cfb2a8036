"""Plans the memory that a text model takes, and asks for it in order."""

from dataclasses import dataclass, replace

from engine.contract.host import Host
from engine.contract.knob import GIB
from engine.contract.resolved_config import MachineFacts, ModelFacts, ResolvedConfig, resolve
from engine.contract.text_settings import TextSettings
from engine.errors import InsufficientMemory
from engine.planning.draft import DraftPlan


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The facts by which the KV pool is sized."""

    intent: TextSettings
    model: ModelFacts
    machine: MachineFacts

    def resolved(self) -> ResolvedConfig:
        """The configuration, as far as it is known."""
        return resolve(self.intent, self.model, self.machine)

    @property
    def machine_beside(self) -> MachineFacts:
        """The machine with the memory that is left beside the weights."""
        left = self.machine.free_memory_bytes - self.model.weight_bytes
        return replace(self.machine, free_memory_bytes=left)

    def beside(self, num_bytes: int) -> "MemoryPlan":
        """The plan with `num_bytes` more kept beside the weights."""
        weight_bytes = self.model.weight_bytes + num_bytes
        return replace(self, model=replace(self.model, weight_bytes=weight_bytes))

    def with_steps(self, num_bytes: int) -> "MemoryPlan":
        """The plan with the memory of its steps."""
        return replace(self, model=replace(self.model, step_bytes=num_bytes))

    def with_draft(self, draft: DraftPlan, host: Host) -> "MemoryPlan":
        """Ask for the memory of a draft model's weights, and return the plan that includes it."""
        capacity = self.machine.free_memory_bytes
        model = draft.beside(self.model)
        weights = draft.facts.weight_bytes
        free = host.reserve(self.machine.device, "draft weights", weights, capacity)
        machine = replace(self.machine, free_memory_bytes=free + model.weight_bytes)
        return MemoryPlan(self.intent, model, machine)

    def reserve_pool(self, config: ResolvedConfig, host: Host) -> None:
        """Ask for the KV pool's memory.

        Raises:
            InsufficientMemory: the pool does not fit. If the operator has set its size, a hint says
                how much memory is left.
        """
        pool = config.num_kv_blocks * config.block_size * self.model.cache_bytes_per_token
        try:
            host.reserve(config.device, "KV cache", pool, self.machine.free_memory_bytes)
        except InsufficientMemory as error:
            if self.intent.kv_cache_memory_gib or self.intent.num_kv_blocks:
                left = max(0, self.machine_beside.free_memory_bytes) / GIB
                error.hint = (
                    f"the model itself fits; {left:.2f} GiB are left for its KV cache, which is "
                    f"set to {pool / GIB:.2f} GiB"
                )
            raise
