"""The results of one stage, written after every case, so that nothing is lost or done twice."""

import io
import json
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
MAX_INPUT_BYTES = 2 << 20
"""The largest inputs of one failing case that are kept."""
RUNNING = "the process ended during this case, or it took too long"


class OutOfTime(Exception):
    """The rest of the stage is for another run."""


class Poisoned(Exception):
    """The device cannot be used any more in this process."""


class Record:
    """The cases of a stage that this process has run.

    Args:
        path: the JSON file, and beside it a .zip file with inputs of failing cases.
        done: names of cases that are not run again.
        ends_s: when to stop, as `time.monotonic` counts.
    """

    def __init__(self, path: Path, done: set[str], ends_s: float) -> None:
        self._path = path
        self._done = done
        self._ends_s = ends_s
        self.cases: dict[str, Facts] = {}
        if path.exists():  # of a process that died
            self.cases = json.loads(path.read_text())["cases"]

    def run(self, name: str, case: Callable[[], Facts | None], **stated: Any) -> Facts:
        """Run a case, unless it was run before, and keep what it returns or how it fails.

        Args:
            stated: facts to keep in any case, such as a seed.

        Raises:
            OutOfTime: too little time is left.
            Poisoned: the device is broken from now on.
        """
        if name in self.cases or name in self._done:
            return self.cases.get(name, {})
        started_s = time.monotonic()
        if started_s > self._ends_s:
            raise OutOfTime
        self.cases[name] = stated | {"ok": False, "error": RUNNING}
        self.write()
        poisoned = False
        try:
            facts: Facts = {"ok": True} | (case() or {})
        except Exception as error:
            poisoned = _poisons(error)
            facts = failure(error)
        facts = stated | facts | {"seconds": round(time.monotonic() - started_s, 3)}
        self.cases[name] = facts
        self.write()
        if poisoned:
            raise Poisoned
        return facts

    def keep(self, name: str, inputs: Any) -> None:
        """Save the inputs of a failing case, unless they are large."""
        import torch

        content = io.BytesIO()
        torch.save(inputs, content)
        if content.tell() <= MAX_INPUT_BYTES:
            with zipfile.ZipFile(self._path.with_suffix(".zip"), "a", zipfile.ZIP_DEFLATED) as file:
                file.writestr(f"{name}.pt", content.getvalue())

    def write(self, **facts: Any) -> None:
        """Write the file, with facts about the whole stage."""
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(facts | {"cases": self.cases}, indent=1))
        part.replace(self._path)


def failure(error: Exception) -> Facts:
    """What is kept of an error."""
    return {
        "ok": False,
        "error": f"{type(error).__name__}: {error}"[:2000],
        "traceback": traceback.format_exc()[-4000:],
    }


def _poisons(error: Exception) -> bool:
    """Whether no further kernel can run after this error."""
    text = f"{type(error).__name__} {error}"
    is_cuda = "CUDA error" in text or "AcceleratorError" in text or "Triton Error [CUDA]" in text
    return is_cuda and "out of memory" not in text.lower()
