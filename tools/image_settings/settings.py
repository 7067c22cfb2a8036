"""The settings that are compared with the model's defaults."""

from dataclasses import dataclass, field
from typing import Any

MODEL = "tandem-shapes"
ADAPTER = "night"
"""The name under which the adapter is served."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to draw all pictures.

    Attributes:
        fields: what the requests have besides prompt and seed.
        options: what `tandem serve` is started with besides the model.
    """

    name: str
    group: str
    fields: dict[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()


DEFAULTS = Setting("defaults", "")
SETTINGS = (
    DEFAULTS,
    *(Setting(f"guidance {g:g}", "guidance", {"guidance_scale": g}) for g in (1.0, 2.0, 5.0, 7.0)),
    *(Setting(f"{n} steps", "steps", {"num_inference_steps": n}) for n in (5, 10, 40)),
    *(
        Setting(name, "scheduler", {"scheduler": name})
        for name in ("euler", "euler_ancestral", "dpmpp_2m", "unipc", "lcm")
    ),
    *(Setting(name, "format", options=("--image-dtype", name)) for name in ("bfloat16", "float16")),
    *(
        Setting(name, "format", options=("--image-quantization", name))
        for name in ("int8-weights", "int4", "bnb-nf4")
    ),
)


def adapter_settings(adapter: str) -> tuple[Setting, ...]:
    """The settings with an adapter.

    Args:
        adapter: its folder.
    """
    return tuple(
        Setting(
            f"adapter, scale {scale:g}",
            "adapter",
            {"loras": [{"name": ADAPTER, "scale": scale}]},
            ("--lora", f"{ADAPTER}={adapter}"),
        )
        for scale in (0.5, 1.0)
    )
