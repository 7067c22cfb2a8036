"""What is asked of a model for each item of a task."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from evaluation.endpoint import Endpoint, RequestProblem
from evaluation.likelihoods import ChoiceLikelihoods
from evaluation.problem import EvaluationProblem
from evaluation.record import Answer
from evaluation.scores import Asked
from evaluation.task import Item, Task


@dataclass(frozen=True, slots=True)
class Asking:
    """How a model is asked. Answers of different askings are never mixed.

    Each item has a seed of its own, made from `seed` and its id. With one seed for all, each item
    would meet the same random numbers, and the answers would not be independent.

    Attributes:
        asked: texts, or the log-likelihoods of choices.
        endpoint: whether a prompt is a message of a chat, or a text to continue.
        system: the system message before each conversation.
        body: further fields of each request.
    """

    model: str
    asked: Asked = "answers"
    endpoint: Literal["chat", "completions"] = "chat"
    system: str | None = None
    temperature: float = 0.0
    max_tokens: int = 256
    seed: int | None = None
    stop: tuple[str, ...] = ()
    body: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What answers depend on; the sampling of texts does not matter for choices."""
        values: dict[str, Any] = {
            "model": self.model,
            "asked": self.asked,
            "endpoint": self.endpoint,
            "system": self.system,
        }
        if self.asked == "answers":
            values |= self._sampling()
        return values | dict(self.body)

    def check(self, task: Task) -> None:
        """Raise if the items of a task cannot be asked in this way."""
        task.check_has(*self._needed())
        if self.endpoint == "completions":
            if self.system is not None:
                raise EvaluationProblem(
                    "a system message needs a chat; leave --system out, or use --endpoint chat"
                )
            task.check_has("prompt", "--endpoint completions")

    def _needed(self) -> tuple[str, str]:
        if self.asked == "choices":
            return "choices", "the likelihood of choices"
        return "references", "scoring answers"

    def messages(self, item: Item) -> list[Mapping[str, Any]]:
        """The conversation of an item."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        asked = item.messages or ({"role": "user", "content": item.prompt},)
        return [*system, *asked]

    def request(self, item: Item) -> tuple[str, dict[str, Any]]:
        """Path and body of the request for an item's text."""
        body = {"model": self.model, **self._sampling()}
        if self.seed is not None:
            body["seed"] = zlib.crc32(f"{self.seed} {item.id}".encode())
        body |= self.body
        if self.endpoint == "chat":
            return "/v1/chat/completions", {"messages": self.messages(item), **body}
        return "/v1/completions", {"prompt": item.prompt, **body}

    def _sampling(self) -> dict[str, Any]:
        values: dict[str, Any] = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        if self.seed is not None:
            values["seed"] = self.seed
        if self.stop:
            values["stop"] = list(self.stop)
        return values


class Asker:
    """Asks a server for the answers to items."""

    def __init__(self, endpoint: Endpoint, asking: Asking) -> None:
        self._endpoint = endpoint
        self._asking = asking
        self._likelihoods = ChoiceLikelihoods(endpoint, asking.model, asking.body)

    async def ask(self, item: Item) -> Answer:
        """The answer to an item.

        Raises:
            RequestProblem: the server gives none.
        """
        if self._asking.asked == "answers":
            return await self._text(item)
        if self._asking.endpoint == "completions":
            assert item.prompt is not None
            return await self._likelihoods.after_text(item.prompt, item.choices)
        return await self._likelihoods.after_chat(self._asking.messages(item), item.choices)

    async def _text(self, item: Item) -> Answer:
        path, body = self._asking.request(item)
        answer = await self._endpoint.post(path, body)
        return Answer(
            text=text_of(answer),
            finish_reason=answer["choices"][0].get("finish_reason"),
            fingerprint=answer.get("system_fingerprint"),
        )


def text_of(answer: Mapping[str, Any]) -> str:
    """The text of an OpenAI answer, without reasoning."""
    try:
        choices: Sequence[Mapping[str, Any]] = answer["choices"]
        choice = choices[0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    except (KeyError, IndexError, TypeError):
        raise RequestProblem("the server's answer has no text; check --url", 200) from None
    return text or ""
