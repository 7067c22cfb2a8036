"""One panel of a dashboard, and the queries that panels are made of."""

from dataclasses import dataclass
from typing import Any

CHOSEN = 'model_name=~"$model"'
"""Selects the models that the reader has chosen."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel with its queries, by their legends.

    Attributes:
        unit: Grafana's name of the unit.
        note: shown with the panel. A panel that may be empty begins with `Empty`.
    """

    title: str
    unit: str
    queries: dict[str, str]
    note: str = ""
    kind: str = "timeseries"

    def json(self, number: int) -> dict[str, Any]:
        """The panel at the place of that number, two in a row."""
        is_heat_map = self.kind == "heatmap"
        targets = [
            {
                "refId": chr(ord("A") + i),
                "expr": expr,
                "legendFormat": legend,
                "format": "heatmap" if is_heat_map else "time_series",
                "exemplar": "_bucket" in expr,
            }
            for i, (legend, expr) in enumerate(self.queries.items())
        ]
        return {
            "id": number + 1,
            "title": self.title,
            "description": self.note,
            "type": self.kind,
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
            "fieldConfig": {"defaults": {"unit": self.unit, "min": 0}, "overrides": []},
            "options": {"calculate": False} if is_heat_map else {},
            "targets": targets,
        }


def rate(metric: str, by: str = "model_name", where: str = CHOSEN) -> str:
    """The rate of a counter per second, summed over everything but some labels."""
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"


def gauge(metric: str, by: str = "model_name", where: str = CHOSEN) -> str:
    return f"sum by ({by}) ({metric}{{{where}}})"


def share(part: str, whole: str) -> str:
    """The share of one rate in another; 0 while nothing happens."""
    return f"{rate(part)} / clamp_min({rate(whole)}, 1e-9)"


def quantiles(histogram: str, by: str = "model_name", where: str = CHOSEN) -> dict[str, str]:
    """Median, 95th and 99th percentile of a histogram."""
    buckets = rate(f"{histogram}_bucket", f"le, {by}", where)
    label = f"{{{{{by}}}}}"
    return {
        f"{label} p{percent}": f"histogram_quantile({percent / 100}, {buckets})"
        for percent in (50, 95, 99)
    }


def each(expr: str, *labels: str) -> dict[str, str]:
    """One query whose lines are named after labels."""
    return {" ".join(f"{{{{{label}}}}}" for label in labels or ("model_name",)): expr}


def heat_map(title: str, unit: str, histogram: str) -> Panel:
    """How often which value came, over time."""
    queries = {"{{le}}": rate(f"{histogram}_bucket", "le")}
    return Panel(title, unit, queries, kind="heatmap")


def latency(title: str, histogram: str, note: str = "") -> Panel:
    """A panel of a time's quantiles."""
    return Panel(title, "s", quantiles(histogram), note)
