"""Ids of things that a server keeps. If several servers share an address, ids end with the server's
name: any of them that gets a request for such an id can find the server that made it.
"""

import secrets
from contextvars import ContextVar

HOME: ContextVar[str] = ContextVar("HOME", default="")
"""The name of the server that answers the request, in hexadecimal digits; empty if it is the only
one."""


def fresh_digits(number: int) -> str:
    """The number of random hexadecimal digits, enough that no id can be guessed; the last ones are
    the server's name."""
    home = HOME.get()
    return secrets.token_hex(number // 2)[: number - len(home)] + home
