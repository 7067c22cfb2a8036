"""Tells the operator of a model that does not fit the plan and the flags that would fit."""

from engine.contract.resolved_config import MachineFacts
from engine.contract.text_settings import TextSettings
from engine.errors import EngineError
from engine.planning.plain_text import plan_table
from engine.planning.process_bytes import CONTEXT_BYTES, PROCESSES
from engine.planning.report import Target
from engine.planning.text import plan
from engine.weights.source import Checkpoint

_CONTEXT = 2048
"""The tokens of a text if the operator gives no length."""


def shortage_hint(
    checkpoint: Checkpoint, intent: TextSettings, machine: MachineFacts, longest: int
) -> str | None:
    """The plan of a text model for one text at a time; None if it cannot be made.

    Args:
        longest: the longest text that the model takes.
    """
    is_cpu = machine.device == "cpu"
    target = Target(
        machine=machine,
        process_bytes=PROCESSES["text"].total_bytes if is_cpu else CONTEXT_BYTES,
        device="this machine" if is_cpu else "this GPU",
        context=min(intent.max_model_len or _CONTEXT, longest),
    )
    try:
        return plan_table(plan(checkpoint, intent, target).as_json())
    except EngineError:
        return None
