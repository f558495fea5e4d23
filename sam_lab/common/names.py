"""Names of files, which on most systems are bytes and need not be text: on a line, in JSON, in a table."""

import codecs
import io
import os
import re
import sys

# What ends a line or a column, or moves a terminal's cursor; a backslash, which marks them. Half a character, by which
# Python stands for a byte that it could not decode, is none of them.
UNPRINTED = re.compile("[\\\\\x00-\x1f\x7f-\x9f\u2028\u2029]")
SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def name_text(name: str | os.PathLike) -> str:
    """A file's name as JSON can say it exactly: its bytes read as UTF-8, whatever the locale is.

    A byte that is no UTF-8 becomes half a character, `\\udc80` to `\\udcff`, as in `os.fsdecode`. JSON has an
    escape for it; UTF-8 has not, see [`encodable`].
    """
    return _bytes(name).decode("utf-8", "surrogateescape")


def name_path(text: str) -> str:
    """The path of a name that a text spells, as the system's calls take it; the reverse of [`name_text`].

    They differ where the locale is not UTF-8: in C's, Python cannot encode an é that a table has.
    """
    try:
        return os.fsdecode(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # half a character that stands for no byte: no file has such a name
        return text


def encodable(name: str | os.PathLike) -> str:
    """A file's name as text that UTF-8 can encode: a byte that is none becomes `\\xff`, four characters.

    Another file may have these four characters in its name.
    """
    return _bytes(name).decode("utf-8", "backslashreplace")


def name_in_line(name: str | os.PathLike) -> str:
    """A file's name without line ends, tabs and other control characters, for a column of a line.

    They are `\\n`, `\\r`, `\\t`, or `\\x1b` and `\\u2028` with their number, and a backslash is two. Every other
    character stays, also a byte that is no text.
    """
    return name_path(UNPRINTED.sub(lambda found: SHORT.get(found[0]) or _number(found[0]), name_text(name)))


def _bytes(name: str | os.PathLike) -> bytes:
    name = os.fspath(name)
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:  # from a table, not from the system
        return name.encode("utf-8", "surrogatepass")


def _number(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"


# -- Standard output and error ------------------------------------------------------------------------------------


def _escape(error: UnicodeError) -> tuple[bytes, int]:
    """Bytes of names as they are; what the encoding lacks as its number, as in [`name_in_line`]."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = b""
    for character in error.object[error.start : error.end]:
        half = ord(character) - 0xDC00
        found += bytes([half]) if 0x80 <= half <= 0xFF else _number(character).encode("ascii")
    return found, error.end


def print_any_name() -> None:
    """Lets standard output and error take any text: a name that is no text, a character that the encoding lacks."""
    codecs.register_error("sam_lab.names", _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's is not
            stream.reconfigure(errors="sam_lab.names")
