"""The server that is tested, started with models and adapters made for it."""

import contextlib
import os
import shlex
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from loadtest.launch import Launch, ServerCommand, free_port, launched, log_tail
from loadtest.processes import ProcessStat
from loadtest.random_adapters import layer_shapes, write_random_adapter
from tools.endurance.order import Names
from tools.endurance.patience import PatientClock
from tools.endurance.sample import marked

MARK = "ENDURANCE_RUN"
"""The environment variable by which processes of a server are found, whoever their parent is."""
END_S = 60.0
_POLL_S = 0.05
_ADAPTER_LAYERS = ("q_proj", "v_proj")
_OTHER_NAMES = ("tandem-shapes", "poet", "visitor", "guest")


@dataclass(frozen=True, slots=True)
class Material:
    """The folder with tiny random models and adapters, and how the server is started on them.

    Attributes:
        options: of `tandem serve`. They name the folder as $FOLDER, so that results can show them.
    """

    folder: Path
    names: Names
    options: tuple[str, ...]

    @property
    def shown_command(self) -> str:
        return shlex.join(["tandem", "serve", *self.options])


def tiny_material(folder: Path, more: Sequence[str] = ()) -> Material:
    """A tiny random text model and the built-in image model, which start within seconds."""
    _write_tiny(folder / "models" / "tiny", 1)
    shapes = layer_shapes(folder / "models" / "tiny" / "model.safetensors", _ADAPTER_LAYERS)
    names = Names("tiny", *_OTHER_NAMES)
    return _material(folder, shapes, "tiny=$FOLDER/models/tiny", names, more)


def default_material(folder: Path, more: Sequence[str] = ()) -> Material:
    """The default models, and those that enlarge pictures and cut them out."""
    names = Names(
        *("smollm2-135m-instruct", *_OTHER_NAMES),
        upscaler="realesr-animevideov3",
        matting="u2netp",
    )
    shapes = {
        f"model.layers.{layer}.self_attn.{name}": (num_outputs, 576)
        for layer in range(30)
        for name, num_outputs in zip(_ADAPTER_LAYERS, (576, 192), strict=True)
    }
    return _material(folder, shapes, names.text, names, more)


def _write_tiny(folder: Path, seed: int) -> None:
    from tools.tiny_models import TINY_MODELS

    TINY_MODELS["llama"].save(folder, seed=seed, max_position_embeddings=2048)


def _material(
    folder: Path,
    shapes: dict[str, tuple[int, int]],
    text: str,
    names: Names,
    more: Sequence[str],
) -> Material:
    _write_tiny(folder / "models" / names.visitor, 2)
    for seed, name in enumerate((names.adapter, names.visiting_adapter)):
        write_random_adapter(folder / "adapters" / name, shapes, 8, seed)
    options = [
        *(option for model in (text, *names.models[1:]) for option in ("--model", model)),
        *("--lora", f"{names.adapter}=$FOLDER/adapters/{names.adapter}"),
        *("--loras-dir", "$FOLDER/adapters", "--models-dir", "$FOLDER/models"),
        *("--enable-runtime-loading", "--kv-cache-memory-gib", "0.125"),
        *("--log-format", "json", *more),
    ]
    return Material(folder, names, tuple(options))


class Server:
    """A server that runs. Use `running`."""

    def __init__(self, url: str, launch: Launch, mark: str, log: Path) -> None:
        self.url = url
        self.launch = launch
        self.mark = mark
        self.log = log

    @property
    def pid(self) -> int:
        return self.launch.pid

    def processes_left(self) -> list[int]:
        """All processes of this server that there are, whoever their parent is."""
        return marked(MARK, self.mark)

    async def wait_ready(self, timeout_s: float) -> bool:
        """Whether `/ready` answers 200 in time."""
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            clock = PatientClock()
            while clock.seconds < timeout_s:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"{self.url}/ready")).status_code == 200:
                        return True
                await clock.sleep(_POLL_S)
        return False

    async def end(self, number: signal.Signals = signal.SIGTERM) -> list[str]:
        """End the server by a signal. Says what was wrong with that, or if it had ended before."""
        problems = []
        if self.runs():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            clock = PatientClock()
            while self.runs() and clock.seconds < END_S:
                await clock.sleep(_POLL_S)
            if self.runs():
                problems.append(f"the server did not end in {END_S:g} s")
        else:
            problems.append(await self._own_end())
        clock = PatientClock()
        while self.processes_left() and clock.seconds < 10:
            await clock.sleep(_POLL_S)
        if left := self.processes_left():
            problems.append(f"{len(left)} processes outlived the server by 10 s")
        return problems

    async def _own_end(self) -> str:
        status = await self.launch.process.wait()
        return f"the server had ended by itself with status {status}:\n{log_tail(self.log)}"

    def runs(self) -> bool:
        stat = ProcessStat.read(self.pid)
        return stat is not None and not stat.is_zombie


@contextlib.asynccontextmanager
async def running(
    material: Material,
    log: Path,
    prefix: str = "",
    port: int | None = None,
    variables: dict[str, str] | None = None,
) -> AsyncIterator[Server]:
    """Start the server and yield once all of its models serve.

    Args:
        prefix: words before the server's command.

    Raises:
        RuntimeError: it does not serve.
    """
    mark = uuid.uuid4().hex
    port = port or free_port()
    options = " ".join(f'"{option}"' for option in material.options)
    python = shlex.quote(sys.executable)
    command = f"exec {prefix} {python} -m server serve --port {port} {options}"
    url = f"http://127.0.0.1:{port}"
    own = {"FOLDER": str(material.folder), MARK: mark}
    start = ServerCommand(
        "tandem", command, f"{url}/v1", material.names.text, variables=own | (variables or {})
    )
    async with launched(start, log) as launch:
        server = Server(url, launch, mark, log)
        if not await server.wait_ready(300):
            raise RuntimeError(f"not all models became ready: see {log}")
        yield server
