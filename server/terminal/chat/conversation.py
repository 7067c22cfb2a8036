"""The messages of a chat so far, and the options for the next answer."""

from collections.abc import Generator
from typing import Any

import httpx

from server.terminal.client import read_events

_LOOPS = {"max_pattern_size": 48, "min_count": 8}
"""The rule for answers that repeat themselves: small models may do so to the end of their
context."""


class Conversation:
    """A chat with a model.

    Attributes:
        model: the id of the model, or of an adapter.
        system: the system message, if there is one.
        sampling: fields of the next request.
        pictures: data URLs of pictures that go with the next question.
        messages: what was said, without the system message.
        end: why the last answer ended, as the server says; `empty` if nothing came.
    """

    def __init__(
        self, client: httpx.Client, model: str, system: str | None, sampling: dict[str, Any]
    ) -> None:
        self.model = model
        self.system = system
        self.sampling = sampling
        self.pictures: list[str] = []
        self.messages: list[dict[str, Any]] = []
        self.end: str | None = None
        self._client = client

    def reset(self) -> None:
        """Forget what was said, and the pictures for the next question."""
        self.messages, self.pictures = [], []

    def ask(self, question: str) -> Generator[str, None, None]:
        """Pieces of the answer as they come. The part that was received stays in the conversation,
        even if the answer is stopped early; a question that failed does not.

        Raises:
            ServerProblem: the server refused the question, or the connection broke.
        """
        self.messages.append({"role": "user", "content": self._content(question)})
        system = [{"role": "system", "content": self.system}] if self.system else []
        body = {
            **self.sampling,
            "model": self.model,
            "messages": [*system, *self.messages],
            "repetition_detection": _LOOPS,
            "stream": True,
        }
        answer = ""
        self.end = None
        try:
            for event in read_events(self._client, "/v1/chat/completions", body):
                for choice in event.get("choices", ()):
                    piece = choice["delta"].get("content") or ""
                    answer += piece
                    self.end = choice.get("finish_reason") or self.end
                    yield piece
        finally:
            if answer:
                self.messages.append({"role": "assistant", "content": answer})
            else:
                self.messages.pop()
                self.end = "empty"

    def _content(self, question: str) -> Any:
        """The question, with the pictures that wait for it."""
        if not self.pictures:
            return question
        pictures, self.pictures = self.pictures, []
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
        return [*parts, {"type": "text", "text": question}]
