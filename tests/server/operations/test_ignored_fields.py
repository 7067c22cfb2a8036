"""What a client is told of fields that nobody knows."""

from server.operations.ignored_fields import ignored_fields_header
from server.protocol.chat import ChatCompletionRequest

USER = {"role": "user", "content": "hi"}


def test_ignored_fields_cannot_break_a_header() -> None:
    names = ["a-b.c_1", "x\r\nSet-Cookie: y", "é", "", "z" * 500]
    request = ChatCompletionRequest.model_validate({"messages": [USER], **dict.fromkeys(names, 1)})
    header = ignored_fields_header(request)["X-Ignored-Fields"]
    assert header == f"a-b.c_1, x??Set-Cookie??y, ?, , {'z' * 64}"
    many = ChatCompletionRequest.model_validate(
        {"messages": [USER], **{f"f{i}": 1 for i in range(1000)}}
    )
    assert len(ignored_fields_header(many)["X-Ignored-Fields"]) < 4096
    plain = ChatCompletionRequest.model_validate({"messages": [USER]})
    assert ignored_fields_header(plain) == {}
