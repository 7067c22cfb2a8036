"""Prints which Triton kernels a runner on a GPU has to compile while it serves.

To be run in a process of its own, where kernels are not interpreted. Nothing is computed: models,
caches and inputs lie on the `meta` device, which keeps addresses (so alignments) and no numbers.
"""

import json
import random
import sys
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from engine.contract.resolved_config import ResolvedConfig
from engine.contract.sampling_params import SamplingParams
from engine.llm.decision import NewSequence, ScheduleDecision
from engine.llm.runner.cuda_recorder import CudaRecorder
from engine.llm.runner.model_runner import ModelRunner
from engine.llm.runner.step_graph import AtOnce
from engine.models.config import ModelConfig
from engine.models.experts_config import ExpertsConfig
from engine.models.registry import create_model
from kernels.linear.triton import _linear_add_kernel, _linear_kernel
from kernels.shared import transfer
from kernels.tools.launches import recorded
from tests.helpers.llm.paged_executor import make_config
from tests.helpers.llm.steps import first_step, new, part

META = torch.device("meta")
LLAMA = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=2,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    rms_norm_eps=1e-5,
    max_position_embeddings=8192,
)
ODD = replace(
    LLAMA,
    vocab_size=131,
    hidden_size=50,
    intermediate_size=77,
    num_attention_heads=5,
    num_key_value_heads=5,
    head_dim=10,
)
QWEN = replace(LLAMA, architecture="Qwen3ForCausalLM", num_attention_heads=8, num_key_value_heads=2)
WINDOWED = replace(
    LLAMA, architecture="MistralForCausalLM", windows=(600,) * LLAMA.num_hidden_layers
)
_SIZES = {field.name: getattr(QWEN, field.name) for field in fields(ModelConfig) if field.init}
MIXTURE = ExpertsConfig(
    **_SIZES | {"architecture": "Qwen3MoeForCausalLM"},
    num_experts=16,
    experts_per_token=4,
    expert_size=96,
    normalised=True,
)
MODELS = {"mixture": MIXTURE, "llama": LLAMA, "odd": ODD, "qwen3": QWEN, "windowed": WINDOWED}
CONFIG = make_config(
    device="cuda",
    dtype="bfloat16",
    max_model_len=8192,
    max_num_seqs=100,
    max_num_batched_tokens=300,
    block_size=16,
    num_kv_blocks=600,
    kv_cache_dtype="bfloat16",
    record_steps=True,
    deterministic=True,
    debug_invariants=False,
)


@dataclass(frozen=True)
class Recording:
    """The output of the one run."""

    output: torch.Tensor

    def replay(self) -> torch.Tensor:
        return self.output


class Recorder:
    """A recorder that just runs the function."""

    is_cheap = False
    padded = CudaRecorder.padded
    padded_with_prompts = CudaRecorder.padded_with_prompts

    def record(self, run: Any) -> Recording:
        return Recording(run())


def pretend_memory() -> None:
    """Make copies to the host zeros, without anything to wait for."""

    def copied(self: Any, tensor: torch.Tensor) -> None:
        fine = tensor.dtype == torch.bool
        self._host = torch.full(tensor.shape, fine, dtype=tensor.dtype)
        self._copied = transfer.Milestone(tensor.device)

    def passed(self: Any, device: torch.device) -> None:
        self._event = None

    transfer.HostCopy.__init__ = copied  # type: ignore[method-assign]
    transfer.Milestone.__init__ = passed  # type: ignore[method-assign]


def make_runner(model_config: ModelConfig, config: ResolvedConfig) -> ModelRunner:
    dtype = getattr(torch, config.dtype)
    model = create_model(model_config, dtype=dtype, device=META, deterministic=config.deterministic)
    model.load_dummy_weights()
    return ModelRunner(model, model_config, config, META, recorder=Recorder(), background=AtOnce())


def random_step(config: ResolvedConfig, first_id: int) -> ScheduleDecision:
    """Make new sequences of all lengths and contexts, with everything that clients may ask for."""
    budget = random.choice([1, 15, 16, 17, 33, 64, 65, 100, config.max_num_batched_tokens])
    budget = min(budget, config.max_num_batched_tokens)
    decision = ScheduleDecision()
    while budget and len(decision.new) < config.max_num_seqs:
        length = random.choice([1, 1, 1, random.randint(1, budget)])
        start = random.choice([0, random.randrange(520), random.randrange(config.max_model_len)])
        start = min(start, config.max_model_len - length - 1)
        length = min(length, config.max_model_len - 1)
        seq_id = first_id + len(decision.new)
        params = random_params()
        prompt = [0] * (max(start, 0) + length + random.randrange(2))
        blocks = -(-(max(start, 0) + length) // config.block_size)
        decision.new.append(NewSequence(seq_id, prompt, params, 0, 0, ()))
        block_ids = [random.randrange(config.num_kv_blocks) for _ in range(blocks)]
        how = {"num_draws": int(random.random() < 0.8), "score": params.prompt_logprobs is not None}
        decision.scheduled.append(part(seq_id, [0] * length, max(start, 0), block_ids, **how))
        budget -= length
    return decision


def prompt_step(config: ResolvedConfig, num_tokens: int) -> ScheduleDecision:
    """Make one whole new sequence."""
    blocks = [0] * -(-num_tokens // config.block_size)
    return first_step({0: [0] * num_tokens}, {0: blocks}, temperature=1.0)


def random_params() -> SamplingParams:
    return random.choice(
        [
            SamplingParams(temperature=0.0),
            SamplingParams(temperature=0.7, top_p=0.9, top_k=40),
            SamplingParams(logprobs=random.randrange(21)),
            SamplingParams(prompt_logprobs=random.randrange(21)),
            SamplingParams(repetition_penalty=1.2, logit_bias={1: -1.0}),
        ]
    )


def specialise_row_counts() -> None:
    """Let Triton do what our kernels keep it from doing."""
    for kernel in (_linear_kernel, _linear_add_kernel):
        for parameter in kernel.params:
            parameter.do_not_specialize = False
        kernel.device_caches.clear()


def stalls(model: str, facts: dict[str, Any], num_steps: int) -> dict[str, Any]:
    """Return the kernels that warming up compiles, and those that serving must compile after it."""
    config = replace(CONFIG, **facts)
    capability = 90
    with recorded(capability) as warmed:
        runner = make_runner(MODELS[model], config)
        runner.warm_up()
    known = {launch.key for launch in warmed}
    with recorded(capability) as served:
        steps = [random_step(config, i * config.max_num_seqs) for i in range(num_steps)]
        # The numbers of rows that Triton would compile kernels of their own for, and another.
        for decision in (*(prompt_step(config, n) for n in (1, 16, 9)), *steps):
            runner.launch(decision).collect()
            runner.execute(ScheduleDecision(finished=[one.seq_id for one in decision.new]))
        if config.record_steps:
            for rows in range(1, config.max_num_seqs + 1):
                serve_decodes(runner, config, rows)
    missed = {f"{one.name} {one.arguments}" for one in served if one.key not in known}
    return {"warmed": len(known), "launches": len(served), "missed": sorted(missed)}


def serve_decodes(runner: ModelRunner, config: ResolvedConfig, rows: int) -> None:
    """Serve decodes often enough for a recording, which is then replayed."""
    for _ in range(5):
        blocks = [1] * -(-1025 // config.block_size)
        context = random.choice([700, 1024]) if config.max_model_len > 1024 else 1
        decision = ScheduleDecision(
            new=[new(i, [0] * context, temperature=1.0) for i in range(rows)],
            scheduled=[part(i, [0], context - 1, blocks) for i in range(rows)],
        )
        runner.execute(decision)
        runner.execute(ScheduleDecision(finished=list(range(rows))))


def main() -> None:
    """Read the arguments: seed, steps, a JSON list of [model, facts], maybe `specialised`."""
    seed, num_steps, cases, *specialised = sys.argv[1:]
    if specialised:
        specialise_row_counts()
    random.seed(int(seed))
    pretend_memory()
    found = [stalls(model, facts, int(num_steps)) for model, facts in json.loads(cases)]
    json.dump(found, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
