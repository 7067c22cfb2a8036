"""What memory a text model takes, and in which order it is asked for."""

from dataclasses import dataclass, replace

from engine.config import GIB, EngineConfig, MachineFacts, ModelFacts, ResolvedConfig, resolve
from engine.errors import InsufficientMemory
from engine.host import Host
from engine.planning.draft import DraftPlan


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What the KV pool is sized by."""

    intent: EngineConfig
    model: ModelFacts
    machine: MachineFacts

    def resolved(self) -> ResolvedConfig:
        """The configuration, as far as is known."""
        return resolve(self.intent, self.model, self.machine)

    @property
    def machine_beside(self) -> MachineFacts:
        """The machine as whatever comes beside the weights finds it."""
        left = self.machine.free_memory_bytes - self.model.weight_bytes
        return replace(self.machine, free_memory_bytes=left)

    def beside(self, num_bytes: int) -> "MemoryPlan":
        """The plan where so much is kept beside the weights."""
        weight_bytes = self.model.weight_bytes + num_bytes
        return replace(self, model=replace(self.model, weight_bytes=weight_bytes))

    def with_draft(self, draft: DraftPlan, host: Host) -> "MemoryPlan":
        """The plan with a draft model beside the model, whose weights' memory is asked for."""
        capacity = self.machine.free_memory_bytes
        model = draft.beside(self.model)
        weights = draft.facts.weight_bytes
        free = host.reserve(self.machine.device, "draft weights", weights, capacity)
        machine = replace(self.machine, free_memory_bytes=free + model.weight_bytes)
        return MemoryPlan(self.intent, model, machine)

    def reserve_pool(self, config: ResolvedConfig, host: Host) -> None:
        """Ask for the KV pool's memory.

        Raises:
            InsufficientMemory: where the operator has set its size, it is said how much there is.
        """
        pool = config.num_kv_blocks * config.block_size * self.model.cache_bytes_per_token
        try:
            host.reserve(config.device, "KV cache", pool, self.machine.free_memory_bytes)
        except InsufficientMemory as error:
            if self.intent.kv_cache_memory_gib or self.intent.num_kv_blocks:
                left = max(0, self.machine_beside.free_memory_bytes) / GIB
                error.hint = (
                    f"the model itself fits: {left:.2f} GiB are left for its KV cache, and "
                    f"{pool / GIB:.2f} GiB were asked for"
                )
            raise
