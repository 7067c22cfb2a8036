"""A1111's names of our noise schedules: a sampler and, since its version 1.9, a schedule type."""

from collections.abc import Iterable

_SAMPLERS = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "pndm": "PLMS",
    "lms": "LMS",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2s": "DPM++ 2S",
    "deis": "DEIS",
    "unipc": "UniPC",
    "lcm": "LCM",
    "tcd": "TCD",
}
_SCHEDULE_TYPES = {"_karras": "Karras", "_exponential": "Exponential"}
SCHEDULE_TYPES = tuple(_SCHEDULE_TYPES.values())
"""A1111's schedule types, apart from a sampler's own default."""
_PLAIN_TYPES = ("", "automatic", "uniform")


def names_of(scheduler: str) -> tuple[str, str]:
    """Sampler and schedule type of one of our schedulers; the type is empty for the sampler's
    default. A name that A1111 does not have is unchanged."""
    for suffix, schedule_type in _SCHEDULE_TYPES.items():
        if scheduler.endswith(suffix):
            base = scheduler.removesuffix(suffix)
            return _SAMPLERS.get(base, base), schedule_type
    return _SAMPLERS.get(scheduler, scheduler), ""


def scheduler_of(sampler: str, schedule_type: str, offered: Iterable[str]) -> str | None:
    """Our scheduler with these names, in any case; None if it is not offered.

    Args:
        sampler: a name such as `DPM++ 2M`, or `DPM++ 2M Karras` as in older versions, or our own
            name.
    """
    wanted = sampler.lower()
    kind = schedule_type.lower()
    if kind not in _PLAIN_TYPES:
        wanted = f"{wanted.removesuffix(f' {kind}')} {kind}"
    for scheduler in offered:
        if wanted in (" ".join(names_of(scheduler)).strip().lower(), scheduler):
            return scheduler
    return None
