"""JSON files of records: larger than memory, read one record at a time."""

import codecs
import gzip
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

SPACE = re.compile(r"[ \t\n\r]*")
LONGEST_RECORD = 1 << 24  # characters: a longer one is a missing quotation mark


def read_json(path: str | Path, chunk_size: int = 1 << 20) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads a JSON list of objects, or JSON lines, one object at a time.

    Args:
        path (`str`): The file, UTF-8; `.gz` is decompressed. It is a list if its first character is `[`, whatever its
            name.
        chunk_size (`int`, *optional*, defaults to 1 MiB): Bytes that are read at once.

    Yields:
        `tuple[int, dict]`: The number of the record in the file, from 1, and the record.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: Neither form, or a truncated file; the message has the record's number and the byte.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"path: there is no file {str(path)!r}, expected a JSON list or JSON lines of records."
        )
    return _json_records(path, chunk_size)


def _json_records(path: Path, chunk_size: int) -> Iterator[tuple[int, dict[str, Any]]]:
    with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
        file.seek(len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0)
        while (first := file.read(1)).isspace():
            pass
        if first == b"[":
            yield from _list_records(file, str(path), chunk_size)
        elif first == b"{":
            file.seek(-1, os.SEEK_CUR)
            yield from _line_records(file, str(path))
        else:
            what = f"begins with {first!r}" if first else "is empty"
            raise ValueError(f"{path}: the file {what}, expected a JSON list of records or a record on each line.")


def _list_records(file: BinaryIO, name: str, chunk_size: int) -> Iterator[tuple[int, dict[str, Any]]]:
    decode = json.JSONDecoder().raw_decode
    to_text = codecs.getincrementaldecoder("utf-8")()
    text, at, base, number = "", 0, file.tell(), 0  # base: bytes before the text
    expected = "a record or ]"

    def more() -> bool:
        nonlocal text, at, base
        chunk = file.read(chunk_size)
        base += len(text[:at].encode())
        try:
            text, at = text[at:] + to_text.decode(chunk, final=not chunk), 0
        except UnicodeDecodeError as error:
            byte = file.tell() - len(error.object) + error.start
            raise ValueError(
                f"{name}: byte {byte}, after {number} records, is not UTF-8 ({error.reason}); the file may be "
                "truncated."
            ) from None
        return bool(chunk)

    def fail(what: str) -> ValueError:
        byte = base + len(text[:at].encode())
        return ValueError(f"{name}: {what}, at byte {byte}, after {number} records; download or write the file again.")

    while True:
        at = SPACE.match(text, at).end()
        if at == len(text):
            if not more():
                raise fail(f"the list ends without ] (expected {expected}): the file is truncated")
        elif text[at] == "]" and expected != "a record":
            break
        elif text[at] == "," and expected == "a comma or ]":
            at, expected = at + 1, "a record"
        elif text[at] == "{" and expected != "a comma or ]":
            try:
                record, at = decode(text, at)
            except json.JSONDecodeError as error:
                # What truncation can cause: an open string, or an error at the end (16: longer than any escape or
                # word).
                cut = error.msg.startswith("Unterminated string") or error.pos > len(text) - 16
                if not cut or len(text) - at > LONGEST_RECORD:
                    raise fail(f"record {number + 1} is malformed ({error.msg})") from None
                if not more():
                    raise fail(f"the file ends within record {number + 1} ({error.msg}): it is truncated") from None
                continue
            number, expected = number + 1, "a comma or ]"
            yield number, record
        else:
            raise fail(f"got {text[at]!r}, expected {expected}")
    at += 1
    while True:
        at = SPACE.match(text, at).end()
        if at < len(text):
            raise fail(f"got {text[at]!r} after the end of the list")
        if not more():
            return


def _line_records(file: BinaryIO, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = ((line_number, line) for line_number, line in enumerate(file, 1) if line.strip())
    for number, (line_number, line) in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{name}: record {number} (line {line_number}) is malformed or truncated ({error}), expected a JSON "
                "object on each line, or one list of them."
            ) from None
        if not isinstance(record, dict):
            raise ValueError(
                f"{name}: record {number} (line {line_number}) is not an object, expected one on each line."
            )
        yield number, record


def is_encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON's escapes can spell half of a surrogate pair, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
