"""Makes a whole plan: finds the model's files, describes the device and asks the model's kind."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from engine.contract.host import Tell
from engine.contract.kinds import KINDS, Kind, imported
from engine.contract.orders import PlanningOrder
from engine.contract.resolved_config import MachineFacts
from engine.contract.status import Phase
from engine.errors import UnsupportedFeature
from engine.planning.chips import CHIPS, Chip, chip_named
from engine.planning.process_bytes import CONTEXT_BYTES, PROCESSES
from engine.planning.report import PlanReport, Target
from engine.planning.this_cpu import this_cpu
from engine.processes.telling_host import TellingHost
from engine.runtime.device import machine_facts, num_usable_cores
from engine.runtime.operations import build_operations
from engine.runtime.threads import limit_threads
from engine.weights.adapter_source import resolve_adapter, with_adapters_here
from engine.weights.recognition import kind_of_checkpoint, with_fetched
from engine.weights.source import resolve_source
from kernels.machine import cpu_name


def make_plan(order: PlanningOrder, tell: Tell) -> dict[str, Any]:
    """The plan, as `tandem plan --json` prints it.

    Raises:
        EngineError: the plan is not possible; the message says why.
    """
    chip = None if order.gpu is None else chip_named(order.gpu)
    host = TellingHost(tell)
    show = partial(host.report, Phase.DOWNLOADING)
    cache_dir, offline = order.cache_dir, order.offline
    fetch = partial(resolve_source, cache_dir=cache_dir, offline=offline, on_progress=show)
    fetch_adapter = partial(resolve_adapter, cache_dir=cache_dir, offline=offline, on_progress=show)
    checkpoint = fetch(order.model)
    kind = kind_of_checkpoint(checkpoint, order.config.kind)
    if kind.planner is None:
        planned = [one.main.makes for one in KINDS.values() if one.planner is not None]
        raise UnsupportedFeature(
            f"{checkpoint.name} makes {kind.main.makes}; plans exist only for models that make "
            f"{' and '.join(planned)}"
        )
    target = _for_chip(chip, order) if chip is not None else _here(kind, order, host)
    config, failed = with_adapters_here(order.config, fetch_adapter)
    config = with_fetched(config, kind, fetch)
    num_replicas, num_sharing = config.replicas, config.num_sharing
    target = target.shared_by(num_replicas, num_sharing)
    config = replace(config, replicas=num_sharing)
    report: PlanReport = imported(kind.planner)(checkpoint, config.of(kind.settings), target)
    report = replace(report, replicas=num_replicas)
    if failed and report.adapters is not None:
        adapters = replace(report.adapters, failed={**failed, **report.adapters.failed})
        report = replace(report, adapters=adapters)
    return report.as_json()


def _for_chip(chip: Chip, order: PlanningOrder) -> Target:
    free = chip.memory_bytes - CONTEXT_BYTES
    return Target(
        machine=MachineFacts(device="cuda", num_cores=num_usable_cores(), free_memory_bytes=free),
        process_bytes=CONTEXT_BYTES,
        device=chip.title,
        chip=chip,
        concurrency=order.concurrency,
        context=order.context,
    )


def _here(kind: Kind, order: PlanningOrder, host: TellingHost) -> Target:
    machine = machine_facts(order.config.device)
    chip: Chip | None = None
    if machine.device == "cpu":
        if order.measures_speed:
            build_operations(host)
            limit_threads(order.config.num_threads or machine.num_cores)
            chip = this_cpu(machine.free_memory_bytes)
        title, taken = cpu_name(), PROCESSES[kind.name].total_bytes
    else:
        title, taken = torch.cuda.get_device_name(), CONTEXT_BYTES
        chip = next((one for one in CHIPS.values() if one.title == title), None)
    return Target(
        machine=machine,
        process_bytes=taken,
        device=title,
        chip=chip,
        concurrency=order.concurrency,
        context=order.context,
    )
