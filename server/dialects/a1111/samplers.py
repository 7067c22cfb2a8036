"""Finds a model's noise schedules by A1111's names."""

from engine.contract.draw import ImageModelInfo
from engine.errors import InvalidParameter
from server.images.sampler_names import names_of, scheduler_of


def find_scheduler(
    sampler: str | None, schedule_type: str | None, info: ImageModelInfo, *, param: str
) -> str | None:
    """Our scheduler; None if the request asks for none.

    Raises:
        InvalidParameter: the model does not offer it.
    """
    schedule_type = schedule_type or ""
    offered = info.denoising.schedulers if info.denoising else ()
    if not sampler:
        if schedule_type.lower() in ("", "automatic"):
            return None
        sampler = names_of(offered[0])[0] if offered else ""
    found = scheduler_of(sampler, schedule_type, offered)
    if found is None:
        names = ", ".join(map(shown, offered))
        raise InvalidParameter(
            f"{info.model} does not offer this sampler with this schedule type; use one of {names}",
            param=param,
        )
    return found


def shown(scheduler: str) -> str:
    """A1111's name for one of our schedulers."""
    return " ".join(names_of(scheduler)).strip()
