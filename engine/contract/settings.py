"""The operator's settings of all models. `engine.contract.resolved_config` resolves those of text
on a machine.

Nothing here reads the environment; `server/settings/settings.py` does, and builds an
`EngineConfig`.
"""

from dataclasses import dataclass, fields
from typing import TypeVar

from engine.contract.image_settings import ImageSettings
from engine.contract.knob import knob
from engine.contract.text_settings import TextSettings
from engine.contract.worker_settings import WorkerSettings

SettingsT = TypeVar("SettingsT", bound=WorkerSettings)


@dataclass(frozen=True, kw_only=True)
class EngineConfig(ImageSettings, TextSettings):
    """All settings side by side, as options, environment variables and files name them; `auto` and
    None leave the choice to model and machine. An engine receives its own class of them."""

    image_share: float = knob(
        0.5,
        "Maximum share of time that image steps take while text is being generated; 1 means no "
        "limit.",
        ge=0.05,
        le=1.0,
    )

    memory_gib: float | None = knob(
        None,
        "Maximum memory that all models together may hold on a device; models that do not fit "
        "sleep until a request needs them. By default, what was free at startup.",
        ge=0,
    )

    sleep_file_gib: float = knob(
        2.0,
        "Maximum size of the files that hold the memory of sleeping models, so that they wake "
        "quickly. Their processes stay until others need their memory. With 0, the processes "
        "always end.",
        ge=0,
    )

    def of(self, wanted: type[SettingsT]) -> SettingsT:
        """The settings of one class."""
        return wanted(**{f.name: getattr(self, f.name) for f in fields(wanted)})
