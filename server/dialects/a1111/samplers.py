"""Our noise schedules by A1111's names, of a model."""

from engine.errors import InvalidParameter
from engine.image_types import ImageModelInfo
from server.images.sampler_names import names_of, scheduler_of


def find_scheduler(
    sampler: str | None, schedule_type: str | None, info: ImageModelInfo, *, param: str
) -> str | None:
    """Ours; None: nothing is asked for.

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
            f"that sampler and schedule type are not offered for {info.model}; use one of {names}",
            param=param,
        )
    return found


def shown(scheduler: str) -> str:
    """The name by which A1111 shows ours."""
    return " ".join(names_of(scheduler)).strip()
