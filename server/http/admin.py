"""Whether a request came with an admin key; the middleware that reads keys notes it."""

from starlette.types import Scope

_KEY = "has_admin_key"


def note_admin_key(scope: Scope) -> None:
    """Note that the request came with an admin key."""
    scope.setdefault("state", {})[_KEY] = True


def has_admin_key(scope: Scope) -> bool:
    """Whether the request came with an admin key."""
    return bool(scope.get("state", {}).get(_KEY))
