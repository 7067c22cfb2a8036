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
from loadtest.launch import free_port

HOME = Path(__file__).parents[1]
TEXT_MODEL, IMAGE_MODEL = "smollm2-135m-instruct", "tandem-shapes"
READY_S = 60.0
"""The longest start of a server that has its models."""
_FIRST_START_S = 600.0
"""A first start fetches the models; how long that takes is the network's matter."""
_PROGRAMS = ("sh", "uname", "ls", "cat", "ldconfig")
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
        environment = without_compiler(place)
        install(wheel.resolve(), place, environment)
        if components is not None:
            list_components(place, components)
        rung = chosen_rung(place, environment)
        with served(["tandem", "serve"], place, environment, _FIRST_START_S):
            pass
        with served(["tandem", "serve"], place, environment, READY_S) as address:
            found = answers(address)
        if list((place / ".cache" / "tandem" / "kernels").glob("*.so")):
            sys.exit("the wheel's server compiled operations: its own were not used")
        command = [sys.executable, "-m", "server", "serve", "--cpu-isa", rung]
        with served(command, HOME, dict(os.environ), _FIRST_START_S) as address:
            expected = answers(address)
    if found != expected:
        sys.exit(f"the wheel's answers for {rung} differ from the checkout's:\n{found}\n{expected}")
    print(f"the wheel's answers have the bits of the checkout's for {rung}", flush=True)


def without_compiler(place: Path) -> dict[str, str]:
    """Make an environment for Python in a folder that is also the home, and return the variables of
    somebody who has that and few programs."""
    venv.create(place / "venv", with_pip=True)
    programs = place / "programs"
    programs.mkdir()
    for path in filter(None, map(shutil.which, _PROGRAMS)):
        (programs / Path(path).name).symlink_to(path)
    ours = {"PATH": f"{place / 'venv' / 'bin'}:{programs}", "HOME": str(place)}
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ours


def install(wheel: Path, place: Path, environment: dict[str, str]) -> None:
    begun_s = time.monotonic()
    limits = str(HOME / "constraints.txt")
    command = ["python", "-m", "pip", "install", "--quiet", "--constraint", limits, str(wheel)]
    _run(command, place, environment)
    print(f"installed in {time.monotonic() - begun_s:.0f} s", flush=True)


def list_components(place: Path, target: Path) -> None:
    """Write the packages of an environment with versions and licences."""
    python = str(place / "venv" / "bin" / "python")
    command = [sys.executable, "-m", "cyclonedx_py", "environment", python]
    command += ["--pyproject", str(HOME / "pyproject.toml"), "--output-reproducible"]
    _run([*command, "--output-file", str(target)], HOME, dict(os.environ))


def chosen_rung(place: Path, environment: dict[str, str]) -> str:
    """Return the rung of the wheel's operations for this processor."""
    command = ["python", "-c", "from kernels import isa; print(isa.chosen())"]
    rung = _run(command, place, environment).strip()
    if rung not in isa.RUNGS:
        sys.exit("the wheel has no operations for this processor; build it anew")
    return rung


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Run a program of the environment's path, and return what it prints."""
    path = shutil.which(command[0], path=environment["PATH"]) or command[0]
    done = subprocess.run(
        [path, *command[1:]], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    return done.stdout


@contextlib.contextmanager
def served(
    command: list[str], folder: Path, environment: dict[str, str], longest_s: float
) -> Iterator[str]:
    """Serve the default models; yields the address once all are ready."""
    port = free_port()
    program = shutil.which(command[0], path=environment["PATH"]) or command[0]
    begun_s = time.monotonic()
    with subprocess.Popen(
        [program, *command[1:], "--port", str(port)], cwd=folder, env=environment
    ) as server:
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
    prompt = "a large red circle left of a small blue star"
    picture = {"model": IMAGE_MODEL, "prompt": prompt, "seed": 6, "response_format": "b64_json"}
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
