"""Changes JSON files, as those of model folders."""

import json
from pathlib import Path
from typing import Any


def edit_json(path: Path, changes: dict[str, Any], *, without: str | None = None) -> None:
    """Set keys of an object in a file, and remove one."""
    content = json.loads(path.read_text()) | changes
    if without is not None:
        del content[without]
    path.write_text(json.dumps(content))
