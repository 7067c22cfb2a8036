"""Where and how a worker's steps are profiled on demand, in the form of vLLM's
`--profiler-config`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from engine.contract.json_setting import read_object, refuse
from engine.contract.knob import knob

_SETTING = "profiler_config"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilerConfig:
    """Those of vLLM's fields that have a meaning here."""

    profiler: Literal["torch"] = "torch"
    torch_profiler_dir: str
    torch_profiler_record_shapes: bool = False
    torch_profiler_with_stack: bool = False
    """Off by default, other than in vLLM: it slows steps of small models down many times."""
    torch_profiler_use_gzip: bool = True
    max_iterations: int = knob(100, ge=1, le=10_000)
    """After so many steps the trace is written in any case: it is kept in memory until then."""

    @classmethod
    def read(cls, given: Mapping[str, Any] | None) -> Self | None:
        """Read the setting. None if nothing can be profiled.

        Raises:
            InvalidParameter: as in `read_object`, or the folder has no absolute path.
        """
        if given is None:
            return None
        folder = given.get("torch_profiler_dir")
        if not isinstance(folder, str) or not Path(folder).is_absolute():
            refuse(_SETTING, "torch_profiler_dir must be the absolute path of a folder")
        return read_object(cls, given, _SETTING)
