"""Whether a request came with an admin key: noted by the middleware that reads keys."""

from starlette.types import Scope

_KEY = "has_admin_key"


def note_admin_key(scope: Scope) -> None:
    """The request came with one."""
    scope.setdefault("state", {})[_KEY] = True


def has_admin_key(scope: Scope) -> bool:
    """Whether it did."""
    return bool(scope.get("state", {}).get(_KEY))
