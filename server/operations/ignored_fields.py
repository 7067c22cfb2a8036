"""Reports unknown fields to the client and in the access log."""

import re
from typing import Protocol

from fastapi import Request

from server.http.log_fields import annotate

_UNSAFE_IN_HEADER = re.compile(r"[^A-Za-z0-9_.-]")
_MAX_NAMED_FIELDS = 32
_HEADER = "X-Ignored-Fields"


class Sent(Protocol):
    """What a client sent."""

    def ignored_fields(self) -> list[str]: ...


def report_ignored_fields(request: Request, body: Sent) -> dict[str, str]:
    """The answer's header about ignored fields; the line of the access log names them, too."""
    header = ignored_fields_header(body)
    if header:
        annotate(request, ignored_fields=header[_HEADER])
    return header


def ignored_fields_header(body: Sent) -> dict[str, str]:
    """`X-Ignored-Fields`: the fields that the client sent and that are unknown here. Their names
    come from the client, so only plain characters go into the header, and only a limited number of
    names."""
    names = [_UNSAFE_IN_HEADER.sub("?", name)[:64] for name in body.ignored_fields()]
    return {_HEADER: ", ".join(names[:_MAX_NAMED_FIELDS])} if names else {}
