"""The other ranks of a model that several processes compute together.

Rank 0 is the model's worker. It starts a process for each other rank
(`engine.llm.start.rank_child`), sends it every step's decision, and draws the tokens alone. If a
rank ends, hangs or fails in a step, the worker ends as well: its supervisor tells the clients and
starts all of them again.
"""

import math
import os
import pickle
import subprocess
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import structlog

from engine.contract.resolved_config import MachineFacts
from engine.contract.sampling_params import SamplingParams
from engine.contract.text_settings import TextSettings
from engine.errors import InvalidParameter, UnsupportedFeature
from engine.llm.decision import NewSequence, ScheduleDecision
from engine.llm.runner.rank_group import RankGroup
from engine.llm.start.sizing import Sizing
from engine.models.config import ModelConfig
from engine.processes.exit_code import cause_of_end
from engine.processes.own_packages import module_command
from engine.processes.pulse import PulseReader
from engine.processes.watchdog import Watchdog
from engine.weights.source import Checkpoint
from kernels import isa
from kernels.cache_folder import cache_folder

SILENCE_S = 4.0
"""The time without a message after which a rank counts as stopped."""
LAST_WORDS_S = 3.0
"""The time that rank 0 has to say why a model cannot be loaded, when another rank has ended for the
same reason."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankOrder:
    """Everything that a rank needs to start."""

    rank: int
    checkpoint: Checkpoint
    intent: TextSettings
    sizing: Sizing
    meeting_fd: int
    """See `RankGroup`."""
    cpu_isa: str
    kernels: Path
    pulse_fd: int

    def group(self) -> RankGroup:
        """Return the rank's end of the group."""
        size = self.intent.tensor_parallel_size
        return RankGroup(self.rank, size, self.meeting_fd, self.intent.step_timeout_s)


def check_ranks(config: ModelConfig, intent: TextSettings, machine: MachineFacts) -> None:
    """Check that ranks can share the work of a model.

    Raises:
        InvalidParameter: there are more ranks than cores.
        UnsupportedFeature: they cannot share this model's; the message says why.
    """
    size = intent.tensor_parallel_size
    if size == 1:
        return
    if size > machine.num_cores:
        raise InvalidParameter(
            f"tensor_parallel_size is {size}, and a model may compute on {machine.num_cores} cores "
            f"here; use at most as many",
            param="tensor_parallel_size",
        )
    reasons = {
        "a model on a GPU": machine.device != "cpu",
        "a model that sees pictures": config.pictures is not None,
        "a model with recurrent states": config.recurrent_bytes(1) > 0,
        "a model with LoRA adapters": intent.max_adapters > 0,
        "a model with a kv_store": intent.kv_store is not None,
        "a model with kv_transfer": intent.kv_transfer is not None,
        "a model with a speculative_model": intent.speculative_model is not None,
        "a model with async_scheduling on": intent.async_scheduling == "on",
    }
    for what, holds in reasons.items():
        if holds:
            raise UnsupportedFeature(
                f"tensor_parallel_size is {size}, and {what} cannot be divided between ranks yet; "
                f"use a tensor_parallel_size of 1",
                param="tensor_parallel_size",
            )


class _Rank:
    """One of the other processes."""

    def __init__(self, order: RankOrder) -> None:
        self.number = order.rank
        self._pulses = PulseReader()
        self._watchdog = Watchdog(SILENCE_S, math.inf)
        write_fd = self._pulses.write_fd
        self._process = subprocess.Popen(
            module_command("engine.llm.start.rank_child"),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(write_fd, order.meeting_fd),
        )
        self._pulses.let_go()
        self.send(pickle.dumps(replace(order, pulse_fd=write_fd)))

    def send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(message)
        self._process.stdin.flush()

    def problem(self, elapsed_s: float, *, is_ready: bool) -> str | None:
        """Why the rank is lost; None if it lives."""
        code = self._process.poll()
        if code is not None:
            return cause_of_end(code)
        pulse = self._pulses.read()
        if pulse is not None:
            self._watchdog.on_pulse(pulse)
        return self._watchdog.tick(elapsed_s, is_ready=is_ready, is_busy=False)

    def end(self) -> None:
        """End the process, which has nothing left to do."""
        self._process.kill()
        self._process.wait()


class Ranks:
    """The other ranks of this process's model, from their start to their end."""

    def __init__(self, checkpoint: Checkpoint, intent: TextSettings, sizing: Sizing) -> None:
        own = RankOrder(
            rank=0,
            checkpoint=checkpoint,
            intent=intent,
            sizing=sizing,
            meeting_fd=os.memfd_create("ranks"),
            cpu_isa=isa.chosen(),
            kernels=cache_folder(),
            pulse_fd=-1,
        )
        self._group = own.group()
        self.parallel = self._group.parallel
        self._others = [_Rank(replace(own, rank=n)) for n in range(1, self.parallel.size)]
        self._is_ready = self._is_ending = False
        threading.Thread(target=self._watch, name="watch-ranks", daemon=True).start()

    def meet(self) -> None:
        """Wait until all ranks have loaded their share of the weights."""
        self._group.meet()

    def send(self, decision: ScheduleDecision) -> None:
        """Have the other ranks take part in a step."""
        self._is_ready = True
        message = pickle.dumps(replace(decision, new=_scored(decision.new)))
        for rank in self._others:
            rank.send(message)

    def lose(self, cause: str, rank: int = 0) -> NoReturn:
        """End this process, because the ranks can compute nothing together any more."""
        log.error("a rank was lost; reloading the model", rank=rank, cause=cause)
        os._exit(1)

    def end(self) -> None:
        """End the other ranks."""
        self._is_ending = True
        for rank in self._others:
            rank.end()

    def _watch(self) -> None:
        ticked_s = time.monotonic()
        while not self._is_ending:
            time.sleep(SILENCE_S / 8)
            last_s, ticked_s = ticked_s, time.monotonic()
            for rank in self._others:
                cause = rank.problem(ticked_s - last_s, is_ready=self._is_ready)
                if cause is not None and not self._is_ending:
                    time.sleep(0.0 if self._is_ready else LAST_WORDS_S)
                    self.lose(cause, rank.number)


def _scored(new: list[NewSequence]) -> list[NewSequence]:
    """The new sequences whose prompts are scored, which takes part of the ranks' logits. Everything
    else about tokens concerns only the rank that draws them."""
    return [
        replace(
            one, sampling=SamplingParams(prompt_logprobs=one.sampling.prompt_logprobs), guides=None
        )
        for one in new
        if one.sampling.prompt_logprobs is not None
    ]
