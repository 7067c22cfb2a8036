"""What documents of results have in common."""

from typing import Any

CPU = {"watched": 0.9, "loadtest": 0.006, "others": 0.021, "steal": 0.001}


def provenance(form: str, label: str, day: int = 1) -> dict[str, Any]:
    return {
        "format": form,
        "label": label,
        "command": "python -m loadtest x",
        "started_at": f"2026-01-{day:02}T00:00:00Z",
        "commit": "0123456789abcdef",
        "uncommitted_changes": False,
        "machine": {
            "cpu": "Some CPU",
            "cpu_family_model": "25/17",
            "cpu_flags": "avx2",
            "cores": 2,
            "memory_gib": 23.4,
            "system": "Linux 6",
            "python": "3.11.7",
        },
    }
