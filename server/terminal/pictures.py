"""`tandem draw`, `upscale` and `cutout`: write a picture from a running server to a file."""

import base64
import contextlib
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from server.settings import ClientSettings
from server.terminal.client import ServerProblem, answer_of, open_client, unreachable

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""Image formats by the ending of the file's name."""
_POLL_S = 0.2
_PATIENCE = httpx.Timeout(None, connect=5.0)
"""Time-outs of requests. A large picture takes minutes and is answered whole; its progress shows
that the server works on it."""

Tell = Callable[[float | None, str], None]
"""Called with the share that is done, or None, and a line about the work."""


class FileProblem(Exception):
    """A file cannot be read or written. `str(problem)` is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureOrder:
    """A request to a server.

    Attributes:
        path: the route.
        fields: fields of the body.
        image: the file that is sent along, if the route takes one.
        output: the file to write; its ending sets the format.
        doing: a word for the server's work.
    """

    path: str
    fields: Mapping[str, Any]
    image: Path | None = None
    output: Path
    doing: str


def lora_of(text: str) -> dict[str, Any]:
    """An adapter from its name, perhaps with a colon and its scale."""
    name, _, scale = text.rpartition(":")
    try:
        return {"name": name, "scale": float(scale)} if name else {"name": text}
    except ValueError:
        return {"name": text}


def picture_command(settings: ClientSettings, order: PictureOrder) -> int:
    """Send the request, wait and write the file. Returns the exit code: 2 if a file cannot be used,
    1 if the server gives no picture."""
    with open_client(settings) as client:
        try:
            draw_picture(client, order)
        except FileProblem as problem:
            typer.echo(f"tandem: {problem}", err=True)
            return 2
        except ServerProblem as problem:
            typer.echo(f"tandem: {problem}", err=True)
            return 1
        except KeyboardInterrupt:
            return 130
    return 0


def draw_picture(client: httpx.Client, order: PictureOrder) -> None:
    """Send the request, wait, write the file, show it where the terminal can, and print its name.
    An interrupt cancels the request.

    Raises:
        FileProblem: a file cannot be used.
        ServerProblem: the server gives no picture.
    """
    body = _body(order)
    request_id = uuid.uuid4().hex
    try:
        with _progress() as tell:
            answer = _wait(client, order, body, request_id, tell)
    except KeyboardInterrupt:
        with contextlib.suppress(httpx.HTTPError):
            client.delete(f"/v1/requests/{request_id}")
        raise
    picture = base64.b64decode(answer["data"][0]["b64_json"])
    _write(order.output, picture)
    if sys.stdout.isatty():
        from server.terminal.inline_picture import show_picture  # its libraries take a while

        show_picture(picture)
    typer.echo(_told(order.output, answer))
    for warning in answer.get("warnings", ()):
        typer.echo(f"warning: {warning}", err=True)


def _body(order: PictureOrder) -> dict[str, Any]:
    """The arguments of the POST."""
    ending = order.output.suffix.lower()
    if ending not in FORMATS:
        raise FileProblem(
            f"the output format cannot be told from the name {order.output}; end it in "
            f"{', '.join(FORMATS)}"
        )
    fields = {**order.fields, "output_format": FORMATS[ending]}
    if order.image is None:
        return {"json": fields}
    try:
        image = order.image.read_bytes()
    except OSError as error:
        raise FileProblem(f"{order.image} cannot be read: {error.strerror}") from None
    return {"data": fields, "files": {"image": (order.image.name, image)}}


def _wait(
    client: httpx.Client, order: PictureOrder, body: Mapping[str, Any], request_id: str, tell: Tell
) -> Any:
    """The answer. While it is awaited, the server's progress is shown.

    Raises:
        ServerProblem: no server answers, or it refuses.
    """
    outcome: list[httpx.Response | httpx.HTTPError] = []

    def ask() -> None:
        try:
            headers = {"X-Request-Id": request_id}
            outcome.append(client.post(order.path, headers=headers, timeout=_PATIENCE, **body))
        except httpx.HTTPError as error:
            outcome.append(error)

    asking = threading.Thread(target=ask, daemon=True)  # Ctrl-C leaves it behind
    asking.start()
    while asking.is_alive():
        asking.join(_POLL_S)
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
            tell(*_progress_of(client, request_id, order.doing))
    if isinstance(outcome[0], httpx.HTTPError):
        raise unreachable(client, outcome[0])
    return answer_of(client, outcome[0])


def _progress_of(client: httpx.Client, request_id: str, doing: str) -> tuple[float | None, str]:
    """The progress of the request or, before it begins, of a model that is loaded for it."""
    found = client.get("/v1/requests", params={"id": request_id}).json()["data"]
    if found:
        is_queued = found[0]["status"] == "queued"
        return found[0]["progress"], "waiting for its turn" if is_queued else doing
    for state in client.get("/ready").json()["models"]:
        if state["phase"] not in ("ready", "failed", "stopped"):
            return state["progress"], state["detail"] or f"{state['model']}: {state['phase']}"
    return None, doing


@contextlib.contextmanager
def _progress() -> Iterator[Tell]:
    """A bar on a terminal's standard error, which disappears at the end."""
    console = Console(stderr=True, markup=False, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(24), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        task = bars.add_task("asking", total=None)

        def tell(done: float | None, line: str) -> None:
            total = None if done is None else 1.0
            completed = min(done or 0.0, 0.99)  # the clock stops at the whole
            bars.update(task, description=line, completed=completed, total=total)

        yield tell


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise FileProblem(
            f"{path} cannot be written: {error.strerror}; choose another --output"
        ) from None


def _told(path: Path, answer: Mapping[str, Any]) -> str:
    facts = [answer["size"]]
    if answer.get("seed") is not None:
        facts.append(f"seed {answer['seed']}")
    return f"{path}: {', '.join(facts)}"
