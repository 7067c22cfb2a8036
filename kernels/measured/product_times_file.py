"""The file that keeps measured times of products between starts."""

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.measured.product_times import ProductTimes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProductTimesFile:
    """A file beside the measured library, whose name it shares.

    A file that cannot be read, or is of another processor, counts as empty. If processes write at
    the same time, some measurements may be lost and are then repeated.
    """

    path: Path
    processor: str

    def read(self) -> dict[str, ProductTimes]:
        """Return the measured times by the name of the type of weights; empty if the file is
        unusable."""
        try:
            content = json.loads(self.path.read_bytes())
            if content["processor"] != self.processor:
                return {}
            return {name: ProductTimes.from_json(one) for name, one in content["times"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log.info("cannot read %s and will measure again: %r", self.path.name, error)
            return {}

    def add(self, times: Mapping[str, ProductTimes]) -> None:
        """Keep more times. If the file cannot be written they are lost and measured again at the
        next start."""
        merged = {name: one.as_json() for name, one in (self.read() | dict(times)).items()}
        try:
            self._replace({"processor": self.processor, "times": merged})
        except OSError as error:
            log.info("cannot store the measured times: %s", error)

    def _replace(self, content: Mapping[str, Any]) -> None:
        """Replace the file atomically, so that a reader finds the old file or the new one."""
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=f"{self.path.name}-")
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(content, file, indent=1)
            os.replace(name, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
