"""The parts of docs/kernels.md that programs write."""

from pathlib import Path

PATH = Path(__file__).parents[2] / "docs" / "kernels.md"


class Section:
    """The text between `<!-- name: ... -->` and `<!-- end of name -->`, on lines of their own."""

    def __init__(self, name: str, path: Path = PATH) -> None:
        self._begin, self._end = f"<!-- {name}:", f"<!-- end of {name} -->"
        self._path = path

    def read(self) -> str:
        """Return the section's present text."""
        return self._split()[1]

    def write(self, text: str) -> None:
        """Put `text` there; the rest of the page stays unchanged."""
        before, _, after = self._split()
        self._path.write_text(before + text + after)

    def _split(self) -> tuple[str, str, str]:
        page = self._path.read_text()
        start = page.index("\n", page.index(self._begin)) + 1
        end = page.index(self._end, start)
        return page[:start], page[start:end], page[end:]


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; columns whose names end in `:` are right-aligned."""
    rule = ["--:" if column.endswith(":") else "---" for column in columns]
    lines = [[column.removesuffix(":") for column in columns], rule, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
