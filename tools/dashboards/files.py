"""The dashboards as Grafana's files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.dashboards.panel import Panel
from tools.dashboards.panels import DASHBOARDS

FOLDER = Path(__file__).parents[2] / "docker/grafana/dashboards"


def files() -> dict[str, str]:
    """The text of each file, by its name."""
    return {
        f"{name}.json": json.dumps(_dashboard(name, title, panels), indent=1) + "\n"
        for name, (title, panels) in DASHBOARDS.items()
    }


def _dashboard(name: str, title: str, panels: Sequence[Panel]) -> dict[str, Any]:
    source = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    model = {
        "name": "model",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": "label_values(tandem_model_ready, model_name)",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
    return {
        "uid": f"tandem-{name}",
        "title": title,
        "tags": ["tandem"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [source, model]},
        "panels": [panel.json(number) for number, panel in enumerate(panels)],
    }
