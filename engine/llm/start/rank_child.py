"""The process of a rank that draws no tokens (`engine.llm.start.ranks`).

Its standard input brings a pickled `RankOrder`, then the decision of every step. It ends when its
standard input does.
"""

import contextlib
import faulthandler
import pickle
import sys

from engine.contract.host import Grant
from engine.contract.status import Phase
from engine.errors import EngineError
from engine.llm.runner.model_runner import ModelRunner
from engine.llm.runner.runner_factory import create_runner
from engine.llm.start.loading import load_weights
from engine.llm.start.ranks import RankOrder
from engine.processes.logs import configure_logging
from engine.processes.process_limits import ignore_group_signals
from engine.processes.pulse import Pulse, send_pulses
from engine.runtime.threads import limit_threads
from engine.weights.loader import load_model_config
from kernels import isa
from kernels.cache_folder import use_cache_folder


class QuietHost:
    """The `Host` of a rank: rank 0 reports progress and asks for the memory of all."""

    def report(
        self, phase: Phase, progress: float | None = None, detail: str | None = None
    ) -> None:
        """Report nothing."""

    def reserve(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> int:
        """Take memory that was asked for."""
        return capacity_bytes

    def borrow(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> Grant:
        """Take memory that was asked for."""
        return Grant(0, capacity_bytes)

    def give_back(self, grant: Grant) -> None:
        """Return nothing."""


def load(order: RankOrder) -> ModelRunner:
    """Load a rank's share of the weights."""
    use_cache_folder(order.kernels)
    isa.choose(order.cpu_isa)
    config, group = order.sizing.config, order.group()
    limit_threads(config.num_threads)
    model_config = load_model_config(order.checkpoint).within(order.intent.max_model_len)
    weights = load_weights(
        order.checkpoint, model_config, order.intent, order.sizing, QuietHost(), group.parallel
    )
    runner = create_runner(weights.model, model_config, config)
    group.meet()
    runner.warm_up()
    return runner


def main() -> None:
    """Take part in all steps of the model."""
    faulthandler.enable()
    ignore_group_signals()
    orders = sys.stdin.buffer
    order: RankOrder = pickle.load(orders)
    send_pulses(Pulse(), order.pulse_fd)
    configure_logging("auto", "warning", fields={"rank": str(order.rank)})
    try:
        runner = load(order)
    except EngineError:  # rank 0 fails in the same way and says so
        sys.exit(1)
    with contextlib.suppress(EOFError):
        while True:
            runner.launch(pickle.load(orders))


if __name__ == "__main__":
    main()
