"""The original release's names of UNets' layers, which kohya uses in adapters of SDXL."""

import re
from collections.abc import Iterable

_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_IN_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_MIDDLE = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}
_PART = re.compile(
    r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


def original_names(paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The original names, each with diffusers' path of the same layer, which is one of `paths`."""
    known = [path for path in paths if path]
    first = {side: _first_blocks(known, side) for side in ("down", "up")}
    parts = list(filter(None, map(_PART.fullmatch, known)))
    with_attention = {part.groups()[:2] for part in parts if part[3] == "attentions"}
    names: dict[str, tuple[str, ...]] = {}
    for path in known:
        original = _OUTSIDE.get(path) or _in_middle(path)
        match = _PART.fullmatch(path)
        if match is not None:
            has_attention = match.groups()[:2] in with_attention
            original = _in_block(match, first[match[1]], has_attention=has_attention)
        if original is not None:
            names[original] = (path,)
    return names


def _first_blocks(paths: Iterable[str], side: str) -> list[int]:
    """The number of each block's first part in the original, and one after the last."""
    sizes: dict[int, set[tuple[str, str]]] = {}
    for match in filter(None, map(_PART.fullmatch, paths)):
        if match[1] == side and match[3] in ("resnets", "downsamplers"):
            sizes.setdefault(int(match[2]), set()).add((match[3], match[4]))
    found = [1 if side == "down" else 0]
    for block in sorted(sizes):
        found.append(found[-1] + len(sizes[block]))
    return found


def _in_block(match: re.Match[str], first: list[int], *, has_attention: bool) -> str | None:
    side, block, kind, number, rest = match.groups()
    blocks, after = ("input_blocks", first[int(block) + 1] - 1)
    if side == "up":
        blocks = "output_blocks"
    if kind == "downsamplers":
        return f"{blocks}.{after}.0.op" if rest == "conv" else None
    if kind == "upsamplers":
        return f"{blocks}.{after}.{1 + has_attention}.{rest}"
    place = f"{blocks}.{first[int(block)] + int(number)}"
    if kind == "attentions":
        return f"{place}.1.{rest}"
    return f"{place}.0.{_IN_RESNET[rest]}" if rest in _IN_RESNET else None


def _in_middle(path: str) -> str | None:
    if not path.startswith("mid_block."):
        return None
    kind, _, rest = path.removeprefix("mid_block.").partition(".")
    number, _, inner = rest.partition(".")
    place = _MIDDLE.get(f"{kind}.{number}")
    if place is None or not inner:
        return None
    if kind == "resnets":
        return f"middle_block.{place}.{_IN_RESNET[inner]}" if inner in _IN_RESNET else None
    return f"middle_block.{place}.{inner}"
