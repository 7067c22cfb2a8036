"""Whether the models fit in memory. The default models' needs are known; others are planned, by
`tandem plan`'s process, which imports torch."""

from collections.abc import Iterator, Sequence
from typing import Any

from engine.contract.model_spec import ModelSpec
from engine.contract.orders import PlanningOrder
from engine.errors import EngineError
from engine.planning.plain_text import GIB
from engine.runtime.memory import available_host_memory
from server.doctor.finding import Finding
from server.settings import Settings
from server.terminal.own_process import OrderProblem, report_of

KNOWN_BYTES = {"smollm2-135m-instruct": 711 << 20, "tandem-shapes": 701 << 20}
"""The results of `tandem plan` for the default models on a CPU, as they are stored, for one text of
full length or one picture."""


def memory(settings: Settings) -> Iterator[Finding]:
    """A finding for the models whose needs are known, together, and one for each other model."""
    known = [one for one in settings.model_specs if _is_known(one, settings)]
    free = available_host_memory()
    if known:
        needed = sum(_known_bytes(one, settings) for one in known)
        free -= needed
        yield _of_known(known, needed, free)
    for model in settings.model_specs:
        if model not in known:
            yield _planned(model, settings)


def _is_known(model: ModelSpec, settings: Settings) -> bool:
    device = model.config(settings.engine_config).device
    return model.ref.lower() in KNOWN_BYTES and not device.startswith("cuda")


def _known_bytes(model: ModelSpec, settings: Settings) -> int:
    """The needs of all of a model's replicas."""
    replicas = model.config(settings.engine_config).replicas
    return replicas * KNOWN_BYTES[model.ref.lower()]


def _of_known(models: Sequence[ModelSpec], needed: int, left: int) -> Finding:
    names = " and ".join(one.name for one in models)
    needs = f"{names} need{'s' if len(models) == 1 else ''} {_gib(needed)}"
    found = f"{_gib(needed + left)} free; {needs}"
    if left >= 0:
        return Finding("memory", "ok", found)
    return Finding("memory", "broken", found, _fix(models))


def _fix(models: Sequence[ModelSpec]) -> str:
    if len(models) > 1:
        return f"close other programs, or serve one model: tandem serve {models[0].ref}"
    return "close other programs, or use a machine with more memory"


def _planned(model: ModelSpec, settings: Settings) -> Finding:
    config = model.config(settings.engine_config)
    order = PlanningOrder(model=model.ref, measures_speed=False)
    here = settings.model_copy(update={"offline": True})  # to look is not to fetch
    try:
        plan = report_of(order, here, config, lambda message: None)
    except (OrderProblem, EngineError) as problem:
        return _not_planned(model, str(problem))
    return _of_plan(model, plan)


def _not_planned(model: ModelSpec, problem: str) -> Finding:
    about = f"memory for {model.name}"
    if "offline mode" in problem:
        found = "not known until the model has been downloaded"
        return Finding(
            about, "limited", found, f"tandem pull {model.ref}, then tandem doctor again"
        )
    if "plans exist only" in problem:
        return Finding(about, "ok", problem.partition("; ")[0] + ", which is not planned")
    found, _, fix = problem.partition("; ")
    return Finding(about, "broken", found, fix or "choose another --model")


def _of_plan(model: ModelSpec, plan: dict[str, Any]) -> Finding:
    """The finding of a plan: for the model as it is stored, or otherwise in fewer bits."""
    about, free = f"memory for {model.name}", f"{_gib(plan['free_bytes'])} free on {plan['device']}"
    if plan["replicas"] > 1:
        free = f"each of {plan['replicas']} replicas: {free}"
    rows = plan["rows"]
    stored = [row for row in rows if row["is_stored"]] or rows[:1]
    fitting = next((row for row in stored if row["fits"]), None)
    if fitting is not None:
        needs = fitting["total_bytes"]
        return Finding(about, "ok", f"{free}; it needs {_gib(needs)}")
    found = f"{free}; it needs {_gib(stored[0]['total_bytes'])}"
    smaller = next((row for row in rows if row["fits"]), None)
    if smaller is not None:
        flags = " ".join(smaller["flags"])
        return Finding(about, "limited", found, f"tandem serve --model {model.ref} {flags}")
    shorter = max(row["max_tokens"] or 0 for row in rows)
    if shorter:
        return Finding(
            about,
            "limited",
            f"{found} for its longest text",
            f"tandem plan --model {model.ref} shows the flags for shorter texts",
        )
    return Finding(about, "broken", found, "choose a smaller model or close other programs")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
