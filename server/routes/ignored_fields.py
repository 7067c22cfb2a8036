"""Tells a client, and the access log, which of its fields nobody knows."""

import re

from fastapi import Request

from server.http.log_fields import annotate
from server.protocol.common import RequestBody

_UNSAFE_IN_HEADER = re.compile(r"[^A-Za-z0-9_.-]")
_MAX_NAMED_FIELDS = 32
_HEADER = "X-Ignored-Fields"


def report_ignored_fields(request: Request, body: RequestBody) -> dict[str, str]:
    """The answer's headers about them; the line of the access log names them, too."""
    header = ignored_fields_header(body)
    if header:
        annotate(request, ignored_fields=header[_HEADER])
    return header


def ignored_fields_header(body: RequestBody) -> dict[str, str]:
    """`X-Ignored-Fields`: what the client sent and nobody knows. Names are its own words, so only
    plain characters go into a header, and not too many of them."""
    names = [_UNSAFE_IN_HEADER.sub("?", name)[:64] for name in body.ignored_fields()]
    return {_HEADER: ", ".join(names[:_MAX_NAMED_FIELDS])} if names else {}
