"""What the operator sets: read once, checked, explained where it is wrong, and listed as rows.

Everybody else takes these names from here. Start at `settings.py`.
"""

from server.settings.problem import SettingsProblem
from server.settings.settings import (
    ANY_MODEL,
    ClientSettings,
    Settings,
    engine_knobs,
    load_client_settings,
    load_settings,
    unknown_variables,
)

__all__ = [
    "ANY_MODEL",
    "ClientSettings",
    "Settings",
    "SettingsProblem",
    "engine_knobs",
    "load_client_settings",
    "load_settings",
    "unknown_variables",
]
