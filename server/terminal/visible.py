"""Text from outside, such as a model's answer, without codes that would control the terminal."""

_KEPT = "\t\n"
_CONTROLS = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (*range(0x20), *range(0x7F, 0xA0))
    if chr(code) not in _KEPT
} | {ord("\r"): ""}


def visible(text: str) -> str:
    """The text with each control character replaced; tabs and ends of lines stay."""
    return text.translate(_CONTROLS)
