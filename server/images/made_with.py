"""The files that draw an image, by the first digits of their SHA-256 digests: for the image's
metadata, and for warnings about settings that were used with other files."""

from collections.abc import Collection, Mapping
from typing import Any

from engine.contract.request import AdaptableInfo, Info
from server.protocol.made_with import MadeWith

_NUM_DIGITS = 16


def made_with(info: Info, adapters: Collection[str] = ()) -> dict[str, Any]:
    """The `MadeWith` of an image; empty if the engine names no digests."""
    found: dict[str, Any] = {}
    if info.digest:
        found["model"] = info.digest[:_NUM_DIGITS]
    own = {name: _digests(info).get(name, "")[:_NUM_DIGITS] for name in adapters}
    if known := {name: digest for name, digest in own.items() if digest}:
        found["adapters"] = known
    return found


def of_adapters(known: Mapping[str, Any], adapters: Collection[str]) -> dict[str, Any]:
    """The same facts for an image that has only some of the adapters."""
    own = {name: one for name, one in known.get("adapters", {}).items() if name in adapters}
    rest = {name: one for name, one in known.items() if name != "adapters"}
    return rest | ({"adapters": own} if own else {})


def changed_since(then: MadeWith, info: Info, adapters: Collection[str] = ()) -> list[str]:
    """A warning for the model and each of `adapters` whose files are not those of `then`."""
    changed = [_changed(f"model {info.model!r}", then.model, info.digest)]
    for name in adapters:
        was, now = (then.adapters or {}).get(name), _digests(info).get(name)
        changed.append(_changed(f"adapter {name!r}", was, now))
    return [warning for warning in changed if warning]


def _digests(info: Info) -> Mapping[str, str]:
    return info.adapter_digests if isinstance(info, AdaptableInfo) else {}


def _changed(what: str, then: str | None, now: str | None) -> str | None:
    if not then or not now or now.startswith(then.lower()):
        return None
    return (
        f"made_with: the files of {what} have changed: they are {now[: len(then)]} now, and these "
        f"settings were used with {then.lower()}; the image will differ"
    )
