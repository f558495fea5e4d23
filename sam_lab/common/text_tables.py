"""Tables as text: aligned columns, Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any


def text_table(rows: Sequence[Sequence[str]], align: str = "right") -> str:
    """Columns of text: the first one aligned left, the others right, or left with `align="left"`."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    justify = str.ljust if align == "left" else str.rjust
    lines = []
    for row in rows:
        cells = [justify(cell, width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def markdown(table: Mapping[str, Any]) -> str:
    """A table as Markdown that also reads well as text.

    Args:
        table (`dict`): From [`table1`] and its like.
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
