"""Creates a model runner from a configuration."""

import torch

from engine.contract.resolved_config import ResolvedConfig
from engine.llm.runner.cuda_recorder import CudaRecorder
from engine.llm.runner.model_runner import ModelRunner
from engine.llm.runner.step_graph import AtOnce, Recorder
from engine.llm.structure.grammars import Grammars
from engine.models.adapters import Adapters
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from kernels import native
from kernels.native_recording import NativeRecorder


def create_runner(
    model: CausalLM,
    model_config: ModelConfig,
    config: ResolvedConfig,
    adapters: Adapters | None = None,
    grammars: Grammars | None = None,
) -> ModelRunner:
    """Create a runner with a KV pool of the configuration's size."""
    device = torch.device(config.device)
    records = config.record_steps and model.can_be_recorded
    recorder = _recorder(device) if records else None
    # On a CPU a recording costs one more step, and the operations serve one thread at a time.
    background = AtOnce() if config.device == "cpu" else None
    return ModelRunner(
        model,
        model_config,
        config,
        device,
        adapters=adapters,
        recorder=recorder,
        background=background,
        grammars=grammars,
    )


def _recorder(device: torch.device) -> Recorder | None:
    if device.type == "cuda":
        return CudaRecorder(device)
    # Code composed of PyTorch may plan by numbers on the host, which a recording would freeze.
    return NativeRecorder() if native.library() is not None else None
