"""Tables as text: aligned columns, Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any


def text_table(rows: Sequence[Sequence[str]], align: str = "right") -> str:
    """Aligned columns of as many cells in each row: the first at the left, the others at `align`, `"right"` or
    `"left"`."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    pad = str.ljust if align == "left" else str.rjust
    lines = [[row[0].ljust(widths[0]), *map(pad, row[1:], widths[1:])] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def markdown(table: Mapping[str, Any]) -> str:
    """A table as Markdown that is also readable as text.

    Args:
        table (`dict`): `title`, `columns`, `rows` (dicts) and `notes`, as [`table1`] returns them.
    """
    lines = [list(table["columns"]), *([_text(row.get(name)) for name in table["columns"]] for row in table["rows"])]
    widths = [max(3, *map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    text = "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)
    notes = "\n".join(f"- {note}" for note in table["notes"])
    return f"**{table['title']}**\n\n{text}\n" + (f"\n{notes}\n" if notes else "")


def _text(cell: Any) -> str:
    if isinstance(cell, dict):
        low, high = cell["interval"] or (None, None)
        return f"{cell['value']:.1f}" + ("" if low is None else f" [{low:.1f}, {high:.1f}]")
    return "" if cell is None else " ".join(str(cell).replace("|", "\\|").split())
