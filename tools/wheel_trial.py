"""Tries a wheel out as a user who has no compiler and no checkout.

    python -m tools.wheel_trial dist/tandem_server-….whl

It installs the wheel into a new environment, serves the default models with a path that has no
compiler, and compares a text with its log-probabilities and a picture, bit by bit, with the answers
of this checkout for the same instructions.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kernels import isa

HOME = Path(__file__).parents[1]
TEXT_MODEL, IMAGE_MODEL = "smollm2-135m-instruct", "tandem-shapes"
READY_S = 60.0
"""The longest start of a server that has its models."""
_FIRST_START_S = 600.0
"""A first start fetches the models; how long that takes is the network's matter."""
_PROGRAMS = ("env", "sh", "uname", "ls", "cat", "ldconfig")
"""What a system without a compiler has."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    try_out(parser.parse_args().wheel)
    return 0


def try_out(wheel: Path, components: Path | None = None) -> None:
    """Install and serve a wheel; write what the installation consists of to `components`
    (CycloneDX).

    Raises:
        SystemExit: it does not serve as it should.
    """
    with tempfile.TemporaryDirectory(prefix="tandem-wheel-") as folder:
        place = Path(folder)
        python = install(wheel.resolve(), place)
        if components is not None:
            list_components(python, components)
        rung = chosen_rung(python, place)
        command = [str(python.with_name("tandem")), "serve"]
        environment = without_compiler(python, place)
        with served(command, place, environment, _FIRST_START_S):
            pass
        with served(command, place, environment, READY_S) as address:
            found = answers(address)
        if list((place / ".cache" / "tandem" / "kernels").glob("*.so")):
            sys.exit("the wheel's server compiled operations: its own were not used")
        command = [sys.executable, "-m", "server", "serve", "--cpu-isa", rung]
        with served(command, HOME, dict(os.environ), _FIRST_START_S) as address:
            expected = answers(address)
    if found != expected:
        sys.exit(f"the wheel's answers for {rung} differ from the checkout's:\n{found}\n{expected}")
    print(f"the wheel's answers have the bits of the checkout's for {rung}", flush=True)


def install(wheel: Path, place: Path) -> Path:
    """Install a wheel into a new environment, and return its Python."""
    begun_s = time.monotonic()
    venv.create(place / "venv", with_pip=True)
    python = place / "venv" / "bin" / "python"
    limits = str(HOME / "constraints.txt")
    command = [python, "-m", "pip", "install", "--quiet", "--constraint", limits, str(wheel)]
    subprocess.run(command, check=True, cwd=place)
    print(f"installed in {time.monotonic() - begun_s:.0f} s", flush=True)
    return python


def list_components(python: Path, target: Path) -> None:
    """Write the packages of an environment with versions and licences."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", str(python)]
    command += ["--pyproject", str(HOME / "pyproject.toml"), "--output-reproducible"]
    subprocess.run([*command, "--output-file", str(target)], check=True)


def chosen_rung(python: Path, place: Path) -> str:
    """Return the rung of the wheel's operations for this processor."""
    code = "from kernels import isa; print(isa.chosen())"
    command = [python, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=place)
    rung = done.stdout.strip()
    if rung not in isa.RUNGS:
        sys.exit(f"the wheel has no operations for this processor, which has {isa.features()}")
    return rung


def without_compiler(python: Path, place: Path) -> dict[str, str]:
    """Return the environment of somebody who has an installation, a home, and few programs."""
    programs = place / "programs"
    programs.mkdir()
    for path in filter(None, map(shutil.which, _PROGRAMS)):
        (programs / Path(path).name).symlink_to(path)
    ours = {"PATH": f"{python.parent}:{programs}", "HOME": str(place)}
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ours


@contextlib.contextmanager
def served(
    command: list[str], folder: Path, environment: dict[str, str], longest_s: float
) -> Iterator[str]:
    """Serve the default models; yields the address once all are ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begun_s = time.monotonic()
    with subprocess.Popen([*command, "--port", str(port)], cwd=folder, env=environment) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            while not _is_ready(address):
                waited_s = time.monotonic() - begun_s
                if server.poll() is not None or waited_s > longest_s:
                    sys.exit(f"{' '.join(command)} is not ready after {waited_s:.0f} s")
                time.sleep(0.2)
            print(f"ready after {time.monotonic() - begun_s:.1f} s", flush=True)
            yield address
        finally:
            server.terminate()


def answers(address: str) -> dict[str, Any]:
    """A text with log-probabilities, and a picture."""
    question = {"role": "user", "content": "What is the capital of France?"}
    chat = {"model": TEXT_MODEL, "messages": [question], "seed": 7, "max_tokens": 48}
    picture = {"model": IMAGE_MODEL, "prompt": "a large red circle left of a small blue star"}
    picture |= {"seed": 6, "response_format": "b64_json"}
    text = _post(f"{address}/v1/chat/completions", chat | {"logprobs": True, "top_logprobs": 5})
    drawn = _post(f"{address}/v1/images/generations", picture)
    return {"text": text["choices"][0], "picture": drawn["data"][0]["b64_json"]}


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/ready", timeout=5):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
