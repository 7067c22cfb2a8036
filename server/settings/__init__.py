"""The operator's settings: read once, checked, explained if they are wrong, and listed as rows.

Other modules import these names from here. Start at `settings.py`.
"""

from server.settings.problem import SettingsProblem
from server.settings.settings import (
    ANY_MODEL,
    ClientSettings,
    Settings,
    TerminalSettings,
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
    "TerminalSettings",
    "engine_knobs",
    "load_client_settings",
    "load_settings",
    "unknown_variables",
]
