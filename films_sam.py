"""Whether a film (MP4, Matroska, ASF, AVI) and other files that go to a decoder as they are break off."""

import io
import re
from collections.abc import Iterator
from typing import BinaryIO


def is_film(start: bytes) -> bool:
    """Whether a file that begins with these 16 bytes is of a kind that may have frames of MPEG audio within it."""
    return (FILMS.match(start) or BOXES.match(start[4:8])) is not None


def find_shortage(stream: BinaryIO, start: bytes, size: int) -> str | None:
    """What shows that a file breaks off, if its container tells.

    Args:
        stream: The file, open in binary mode and seekable.
        start (`bytes`): Its first 16 bytes, behind tags.
        size (`int`): Its bytes.
    """
    if BOXES.match(start[4:8]):
        return _boxes(stream, size)
    films = ((b"\x1aE\xdf\xa3", _matroska), (ASF, _asf), (b"NIST_1A\n", _nist), (b"Creative Voice F", _voc))
    for magic, lacks in films:
        if start.startswith(magic):
            return lacks(stream, size)
    stated = int.from_bytes(start[4:8], "little")
    if start[:4] == b"RIFF" and start[8:12] == b"AVI " and stated + 8 > size + 1 and not is_unknown(stated):
        return shortage(stated + 8, size)
    return None


def stated_seconds(stream: BinaryIO) -> float | None:
    """The length of the first sound of an MP4, without what fills its first frames, or `None` where nothing tells it.

    Args:
        stream: The file, open in binary mode and seekable.
    """
    size = stream.seek(0, io.SEEK_END)
    for movie in _within(stream, (0, size), b"moov"):
        for track in _within(stream, movie, b"trak"):
            scale, length, filling = 0, 0, 0
            for media in _within(stream, track, b"mdia"):
                if not any(bytes_at(stream, begin + 8, 4) == b"soun" for begin, _ in _within(stream, media, b"hdlr")):
                    continue
                for begin, _ in _within(stream, media, b"mdhd"):
                    is_long = bytes_at(stream, begin, 1) == b"\1"
                    place, width = (begin + 20, 8) if is_long else (begin + 12, 4)
                    scale = int.from_bytes(bytes_at(stream, place, 4), "big")
                    length = int.from_bytes(bytes_at(stream, place + 4, width), "big")
            for edits in _within(stream, track, b"edts"):
                for begin, _ in _within(stream, edits, b"elst"):
                    place, width = (begin + 16, 8) if bytes_at(stream, begin, 1) == b"\1" else (begin + 12, 4)
                    filling = max(0, int.from_bytes(bytes_at(stream, place, width), "big", signed=True))
            if scale and length > filling:
                return (length - filling) / scale
    return None


def _within(stream: BinaryIO, limits: tuple[int, int], kind: bytes) -> Iterator[tuple[int, int]]:
    """Where the contents of the boxes of a kind begin and end, within those limits."""
    place, end = limits
    while place + 8 <= end:
        head = bytes_at(stream, place, 16)
        length, begin = int.from_bytes(head[:4], "big"), place + 8
        if length == 1:
            length, begin = int.from_bytes(head[8:], "big"), place + 16
        if length < begin - place:
            return
        if head[4:8] == kind:
            yield begin, min(place + length, end)
        place += length


def find_joins(stream: BinaryIO, start: bytes, size: int) -> list[int]:
    """Where further films begin in a MP4 or ASF that was joined of several, of which decoders read the first.

    Args:
        stream, start, size: As in [`find_shortage`].
    """
    place, begins, indexes = 0, [], []
    if BOXES.match(start[4:8]):
        while len(head := bytes_at(stream, place, 16)) >= 8 and BOXES.match(head[4:8]):
            begins += [place] if head[4:8] == b"ftyp" else []
            indexes += [len(begins)] if head[4:8] == b"moov" else []
            length = int.from_bytes(head[:4], "big")
            length = int.from_bytes(head[8:], "big") if length == 1 else length or size - place
            place += max(8, length)
        return begins[1:] if {*range(1, len(begins) + 1)} == {*indexes} else []
    while start.startswith(ASF) and (head := bytes_at(stream, place, 24)).startswith(ASF_OBJECTS):
        begins += [place] if head.startswith(ASF) else []
        place += max(24, int.from_bytes(head[16:], "little"))
    return begins[1:]


def bytes_at(stream: BinaryIO, place: int, count: int) -> bytes:
    """Bytes of a file, none behind its end."""
    try:
        stream.seek(place)
    except (OSError, OverflowError, ValueError):  # a damaged size may be any number, more than a file system takes
        return b""
    return stream.read(count)


def shortage(stated: int, there: int) -> str:
    return f"its header states {stated} bytes and {there} are there"


def is_unknown(stated: int, width: int = 4) -> bool:
    """Whether a size of so many bytes was never filled in: a recorder that writes to a pipe, or crashed, leaves all
    ones or about the largest positive number. (It also leaves 0, which may be true.)"""
    return stated >= (1 << 8 * width) - 4096 or abs(stated - (1 << 8 * width - 1)) <= 4096


ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
# Header, data, indexes. Others are packets, whose number a live stream does not state, or no part of the film.
ASF_OBJECTS = (
    ASF,
    *map(bytes.fromhex, ("3626b2758e66cf11", "90080033b1e5cf11", "d329e2d6da35d111", "f803b1fead12644c")),
)
MATROSKA_ELEMENTS = re.compile(
    rb"\x1aE\xdf\xa3|\x18S\x80g|\x11M\x9bt|\x15I\xa9f|\x16T\xaek|\x1fC\xb6u|\x1cS\xbbk|\x19A\xa4i|\x10C\xa7p"
    rb"|\x12T\xc3g|[\xa0\xa3\xa7\xab\xaf\xbf\xe7\xec]|XT"
)
FILMS = re.compile(rb"\x1aE\xdf\xa3|0&\xb2u|RIF|FORM|\x00\x00\x01|G|FLV|\.RMF|#!AMR|\x0bw|MAC |NIST|Crea")
BOXES = re.compile(rb"ftyp|styp|moov|moof|mdat|free|skip|wide|pnot|uuid|meta|udta|sidx|ssix|mfra|pdin|prft|emsg|bloc")


def _boxes(stream: BinaryIO, size: int) -> str | None:
    """What a MP4 lacks: a box that is longer than the file, or the index, which often stands last."""
    place, names = 0, set()
    while len(head := bytes_at(stream, place, 16)) >= 8:
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:], "big") if length == 1 else length or size - place
        if not BOXES.match(head[4:8]):
            break  # something else behind the film
        names.add(head[4:8])
        if place + length > size:
            return shortage(place + length, size)
        if length < 8:
            return None
        place += length
    return None if b"moov" in names else "its index (moov) is not there"


def _matroska(stream: BinaryIO, size: int) -> str | None:
    """What a Matroska or WebM file lacks; elements of unknown size, as browsers record them, are entered."""
    place = 0
    while place < size:
        head = bytes_at(stream, place, 12)
        name_width = 9 - head[0].bit_length()
        if name_width > 4 or len(head) <= name_width:
            return None if name_width > 4 else "its last element is cut"
        if not MATROSKA_ELEMENTS.match(head):
            return None  # something else behind the film
        width = 9 - head[name_width].bit_length()
        length = int.from_bytes(head[name_width : name_width + width], "big") & ((1 << 7 * width) - 1)
        place += name_width + width
        is_master = head[:4] in (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75")  # segment, cluster
        if length == (1 << 7 * width) - 1:
            if not is_master:
                return None
        elif place + length > size:
            return shortage(place + length, size)
        else:
            place += length
    return None


def _asf(stream: BinaryIO, size: int) -> str | None:
    place = 0
    while len(head := bytes_at(stream, place, 24)) == 24 and head.startswith(ASF_OBJECTS):
        length = int.from_bytes(head[16:], "little")
        if place + length > size:
            return shortage(place + length, size)
        if length < 24:
            return None
        place += length
    return None


def _nist(stream: BinaryIO, size: int) -> str | None:
    text = bytes_at(stream, 0, 1024).decode("latin-1")
    facts = {name: int(value) for name, value in re.findall(r"\n(\w+) -i (\d{1,18})\b", text)}
    if "shorten" in text or "sample_count" not in facts:
        return None
    length = re.match(r"NIST_1A\n\s*(\d{1,9})", text)
    stated = int(length[1] if length else 1024)
    stated += facts["sample_count"] * facts.get("sample_n_bytes", 1) * facts.get("channel_count", 1)
    return shortage(stated, size) if stated > size else None


def _voc(stream: BinaryIO, size: int) -> str | None:
    place = int.from_bytes(bytes_at(stream, 20, 2), "little")
    while len(head := bytes_at(stream, place, 4)) == 4 and head[0]:
        place += 4 + int.from_bytes(head[1:], "little")
    return shortage(place, size) if place > size else None
