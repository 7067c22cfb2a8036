"""One worker in virtual time: the real scheduler and prefix cache, and steps of known cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.contract.generate import GenerateRequest, ModelInfo, TokenEvent
from engine.contract.resolved_config import AUTO_STEP_RATIO, ResolvedConfig
from engine.contract.sampling_params import SamplingParams
from engine.llm.cost.step_cost import StepWork
from engine.llm.decision import ScheduleDecision, SequenceOutput, StepOutput
from engine.llm.scheduler import Scheduler
from tools.scaling.load import ANSWER_TOKEN, Sent

VOCAB_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What every replica runs on."""

    step_costs: tuple[float, ...]
    """The seconds of a step and of each unit of its work, in the order of `StepWork.sizes`."""
    num_kv_blocks: int
    max_step_ratio: float = AUTO_STEP_RATIO
    """How much longer steps are with prompts than without, while others stream; 0 is no limit."""
    max_model_len: int = 8192
    block_size: int = 16

    @property
    def max_idle_blocks(self) -> int:
        """As many as by default on a CPU."""
        return self.num_kv_blocks // 8

    def seconds(self, work: StepWork) -> float:
        """How long a step takes."""
        return sum(cost * size for cost, size in zip(self.step_costs, work.sizes, strict=True))

    def config(self) -> ResolvedConfig:
        """The default settings of a text model on a CPU."""
        return ResolvedConfig(
            device="cpu",
            dtype="bfloat16",
            quantization="none",
            max_model_len=self.max_model_len,
            max_num_seqs=64,
            max_num_batched_tokens=512,
            max_step_ms=0.0,
            max_step_ratio=self.max_step_ratio,
            block_size=self.block_size,
            num_kv_blocks=self.num_kv_blocks,
            kv_cache_dtype="bfloat16",
            enable_prefix_caching=True,
            max_idle_cached_blocks=self.max_idle_blocks,
            scheduling_policy="fcfs",
            max_num_queued=1 << 20,
            num_threads=2,
            seed=0,
            async_scheduling=False,
            record_steps=True,
            num_speculative_tokens=0,
            prompt_lookup_min=3,
            prompt_lookup_max=8,
            shared_lookup_tokens=0,
            deterministic=False,
            debug_invariants=False,
        )

    def info(self) -> ModelInfo:
        """What the server knows of the model."""
        return ModelInfo(
            model="m",
            path="",
            architecture="",
            max_model_len=self.max_model_len,
            vocab_size=VOCAB_SIZE,
            dtype="bfloat16",
            created=0,
            num_kv_blocks=self.num_kv_blocks,
            kv_block_size=self.block_size,
            max_idle_blocks=self.max_idle_blocks,
        )


def request_of(request_id: str, sent: Sent) -> GenerateRequest:
    """A request as the server sends it to a worker."""
    return GenerateRequest(
        request_id=request_id,
        model="m",
        prompt_token_ids=list(sent.prompt),
        sampling=SamplingParams(max_tokens=sent.answer_len, temperature=0.0, ignore_eos=True),
    )


@dataclass(slots=True)
class SimulatedReplica:
    """A replica that takes one step after the other.

    Attributes:
        busy_s: the time that its steps have taken.
        num_computed: the prompt tokens that were computed.
        awake_from_s: when it can take requests; infinite while it sleeps.
        generation: which of its processes runs; steps of an earlier one count no more.
    """

    machine: Machine
    clock: Callable[[], float]
    scheduler: Scheduler = field(init=False)
    decision: ScheduleDecision | None = None
    """The step under way."""
    busy_s: float = 0.0
    awake_from_s: float = 0.0
    generation: int = 0
    _begun_s: float = 0.0

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin with an empty cache and without requests."""
        config = self.machine.config()
        self.scheduler = Scheduler(
            config, eos_token_ids=(0,), vocab_size=VOCAB_SIZE, clock=self.clock
        )
        self.decision = None
        self.generation += 1

    def begin_step(self, now_s: float) -> float | None:
        """Begin a step, if there is something to do; returns when it ends."""
        if self.decision is not None or not self.scheduler.has_work():
            return None
        decision = self.decision = self.scheduler.schedule()
        self._begun_s = now_s
        return now_s + self.machine.seconds(StepWork.of(decision))

    def end_step(self, now_s: float) -> Sequence[TokenEvent]:
        """Take in the outcome of the step under way."""
        decision, self.decision = self.decision, None
        assert decision is not None
        seconds = now_s - self._begun_s
        self.busy_s += seconds
        self.scheduler.note_time(decision, seconds)
        outputs = [
            SequenceOutput(s.seq_id, [ANSWER_TOKEN] * s.num_draws) for s in decision.scheduled
        ]
        return self.scheduler.commit(decision, StepOutput(outputs))
