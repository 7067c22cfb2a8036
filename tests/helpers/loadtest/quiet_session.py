"""A session that nobody watches, for comparisons."""

from pathlib import Path
from typing import Any

from loadtest.session import Session


def quiet_session(log_dir: Path, **hooks: Any) -> Session:
    hooks = {"say": lambda line: None, "save": lambda document: None} | hooks
    return Session(seed=5, log_dir=log_dir, **hooks)
