"""What all workers of a server have in common."""

from dataclasses import dataclass
from pathlib import Path

from engine.contract.gpus import gpu_variables
from engine.contract.model_spec import ModelSpec
from engine.contract.settings import EngineConfig
from engine.contract.worker_settings import CpuIsa
from engine.processes.own_packages import module_command
from engine.worker import messages


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What every worker is told in addition to its model."""

    config: EngineConfig
    """The server's configuration; a model may have settings of its own."""
    cache_dir: Path
    offline: bool = False
    cpu_isa: CpuIsa = "auto"
    log_format: str = "console"
    log_level: str = "info"
    stderr: int | None = None
    """The file descriptor that workers get as standard error; None is the server's."""
    command: tuple[str, ...] = module_command("engine.worker.loop")
    tunables: str = ""
    """glibc's settings for workers, as in GLIBC_TUNABLES; empty are the server's."""
    visible_gpus: tuple[str, ...] | None = None
    """CUDA's names of the GPUs that the server may use; None is all."""

    def variables_for(self, config: EngineConfig) -> dict[str, str]:
        """The environment variables that a model's worker gets beside the server's."""
        tunables = {"GLIBC_TUNABLES": self.tunables} if self.tunables else {}
        return tunables | gpu_variables(config.device, self.visible_gpus)

    def spec_for(
        self, spec: ModelSpec, config: EngineConfig, address: str, pulse_fd: int
    ) -> messages.WorkerSpec:
        """What a model's worker is told at its start."""
        return messages.WorkerSpec(
            address=address,
            ref=spec.ref,
            model=spec.name,
            config=config,
            cache_dir=str(self.cache_dir),
            offline=self.offline,
            cpu_isa=self.cpu_isa,
            log_format=self.log_format,
            log_level=self.log_level,
            pulse_fd=pulse_fd,
            rank=spec.rank,
        )
