"""Names of files on a line, in JSON and in UTF-8: each says which file it is."""

import ast
import io
import json
import os
import re
import sys

import pytest

from sam_lab.common.files import write_json
from sam_lab.common.names import encodable, name_in_line, name_path, name_text, print_any_name

NAMES = [b"a.wav", "caf\u00e9 \U0001f3b5.wav".encode(), b"a\nb.wav", b"a\\nb.wav", b"t\tb.wav", b"\x1b[31m\r\x07.wav"]
NAMES += [b"odd-\xff\\xff.wav", "u\u0085\u2028\u2029.wav".encode(), b"data:x.wav", b"C:\\clips\\a.wav"]


def unescaped(column: bytes) -> bytes:
    """By Python's own parser of text; what is no text stays."""
    parts = re.split("([\udc80-\udcff])", column.decode("utf-8", "surrogateescape"))
    texts = [
        part if len(part) == 1 and "\udc80" <= part <= "\udcff" else ast.literal_eval(f'"{part}"') for part in parts
    ]
    return "".join(texts).encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_line_is_one_column_and_can_be_read_back(name):
    column = name_in_line(os.fsdecode(name))
    assert len(f"{column}.".splitlines()) == 1 and "\t" not in column and "\x1b" not in column
    assert unescaped(os.fsencode(column)) == name


def test_escapes_are_the_known_ones():
    assert name_in_line("a\nb\tc\rd\\e\x1b\u2028.wav") == r"a\nb\tc\rd\\e\x1b\u2028.wav"
    assert name_in_line("caf\u00e9-\udcff.wav") == "caf\u00e9-\udcff.wav"


@pytest.mark.parametrize("name", NAMES)
def test_json_and_utf8_take_any_name(name, tmp_path):
    text = name_text(os.fsdecode(name))
    write_json({"audio": text}, tmp_path / "a.json")
    stored = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["audio"]
    assert os.fsencode(name_path(stored)) == name
    assert encodable(os.fsdecode(name)).encode() == name.replace(b"\xff", b"\\xff")


def test_half_a_character_of_a_table_stands_for_no_byte():
    assert name_path("\ud83d.wav") == "\ud83d.wav" and encodable("\ud83d.wav") == "\\xed\\xa0\\xbd.wav"


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [("utf-8", "\u00e9\u2026 \U0001f3b5".encode() + b" \xff"), ("ascii", b"\\xe9\\u2026 \\U0001f3b5 \xff")]
    + [("iso8859-1", b"\xe9\\u2026 \\U0001f3b5 \xff")],
)
def test_output_takes_any_text(monkeypatch, encoding, printed):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    print_any_name()
    for stream in streams:
        print("\u00e9\u2026 \U0001f3b5 \udcff", file=stream, end="", flush=True)
        assert stream.buffer.getvalue() == printed
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # as a notebook's, which has no encoding
    print_any_name()
