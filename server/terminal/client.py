"""HTTP for the commands that talk to a running server: one client, and errors as one line."""

import json
from collections.abc import Iterator
from typing import Any

import httpx

from server.settings import ClientSettings

_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
"""Seconds of silence in an answer; the server's heartbeat is far shorter."""


class ServerProblem(Exception):
    """The server did not answer, or refused. `str(problem)` is one line."""


def open_client(settings: ClientSettings) -> httpx.Client:
    headers = {}
    if settings.api_key is not None:
        headers["Authorization"] = f"Bearer {settings.api_key.get_secret_value()}"
    return httpx.Client(base_url=settings.url, headers=headers, timeout=_TIMEOUT)


Card = dict[str, Any]
"""What `/v1/models` says of a model."""


def fetch_text_cards(client: httpx.Client) -> list[Card]:
    """The cards of text models and their adapters that are ready; cards of other kinds also have an
    `architecture`."""
    cards: list[Card] = fetch(client, "/v1/models")["data"]
    return [card for card in cards if "architecture" not in card]


def first_text_model(client: httpx.Client) -> str:
    """The id of the first text model that is ready.

    Raises:
        ServerProblem: no server answers, or no text model is ready.
    """
    cards = fetch_text_cards(client)
    if not cards:
        raise ServerProblem(
            "no text model is ready on this server; try again later, or see `tandem models`"
        )
    model: str = cards[0]["id"]
    return model


def fetch(
    client: httpx.Client,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    accept: tuple[int, ...] = (200,),
) -> Any:
    """The JSON answer to a GET, or to the POST of a body.

    Raises:
        ServerProblem: no server answers, or the status is not an accepted one.
    """
    try:
        response = client.get(path) if body is None else client.post(path, json=body)
    except httpx.HTTPError as error:
        raise unreachable(client, error) from None
    return answer_of(client, response, accept=accept)


def fetch_text(client: httpx.Client, path: str) -> str:
    """The text that answers a GET.

    Raises:
        ServerProblem: no server answers, or it refuses.
    """
    try:
        response = client.get(path)
    except httpx.HTTPError as error:
        raise unreachable(client, error) from None
    if response.status_code != 200:
        raise ServerProblem(_refusal(response))
    return response.text


def answer_of(
    client: httpx.Client, response: httpx.Response, *, accept: tuple[int, ...] = (200,)
) -> Any:
    """The JSON of a response.

    Raises:
        ServerProblem: the status is not an accepted one, or the body is not JSON.
    """
    if response.status_code not in accept:
        raise ServerProblem(_refusal(response))
    try:
        return response.json()
    except ValueError:
        raise not_ours(client) from None


def read_events(client: httpx.Client, path: str, body: dict[str, Any]) -> Iterator[Any]:
    """POST a body and yield the JSON of each server-sent event until `[DONE]`.

    Raises:
        ServerProblem: no server answers, it refuses, or it sends an error event.
    """
    try:
        with client.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                response.read()
                raise ServerProblem(_refusal(response))
            for line in response.iter_lines():
                data = line.removeprefix("data: ")
                if data == line:  # a heartbeat, or the blank line between events
                    continue
                if data == "[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise ServerProblem(event["error"]["message"])
                yield event
    except httpx.HTTPError as error:
        raise unreachable(client, error) from None


def unreachable(client: httpx.Client, error: httpx.HTTPError) -> ServerProblem:
    """The problem of a request that got no answer."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ServerProblem(
            f"no server answers at {client.base_url}; start one with `tandem "
            "serve`, or give its address with --url"
        )
    return ServerProblem(
        f"the connection to {client.base_url} broke ({type(error).__name__}); try again"
    )


def not_ours(client: httpx.Client) -> ServerProblem:
    """The problem of an answer that no server of ours gives."""
    return ServerProblem(f"{client.base_url} does not answer like a Tandem server; check --url")


def _refusal(response: httpx.Response) -> str:
    key = "; give it with --api-key or TANDEM_API_KEY" if response.status_code == 401 else ""
    try:
        return str(response.json()["error"]["message"]) + key
    except (ValueError, KeyError, TypeError):
        return f"the server answered {response.status_code} {response.reason_phrase}{key}"
