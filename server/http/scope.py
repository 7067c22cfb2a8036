"""Reads a raw ASGI scope, without building a request object around it."""

from starlette.types import Scope


def get_header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def get_path(scope: Scope) -> str:
    """The path as routes see it, without the prefix under which a proxy in front serves us."""
    path: str = scope["path"]
    root_path: str = scope.get("root_path", "")
    return path.removeprefix(root_path) if path.startswith(f"{root_path}/") else path
