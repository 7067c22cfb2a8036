"""What was measured of products, kept between starts."""

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
    """A file beside the library that was measured, which its name tells.

    A file that cannot be read, or is of another processor, counts as empty. Processes that write
    at the same time may lose what one of them measured; it is then measured again.
    """

    path: Path
    processor: str

    def read(self) -> dict[str, ProductTimes]:
        """What was measured, by the name of the type of weights; empty if nothing usable was
        kept."""
        try:
            content = json.loads(self.path.read_bytes())
            if content["processor"] != self.processor:
                return {}
            return {name: ProductTimes.from_json(one) for name, one in content["times"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log.info("%s cannot be read and is measured again: %r", self.path.name, error)
            return {}

    def add(self, times: Mapping[str, ProductTimes]) -> None:
        """Keep these, too. Where nothing can be written they are lost, which costs a measurement
        at the next start."""
        merged = {name: one.as_json() for name, one in (self.read() | dict(times)).items()}
        try:
            self._replace({"processor": self.processor, "times": merged})
        except OSError as error:
            log.info("what was measured is not kept: %s", error)

    def _replace(self, content: Mapping[str, Any]) -> None:
        """So that a reader finds the old file or the new one."""
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=f"{self.path.name}-")
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(content, file, indent=1)
            os.replace(name, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
