"""What a sound file holds and whether it is whole, by its container, before a decoder reads it ([`find_layout`]).

Decoders believe headers: they stop at a count that is too small, return the beginning of a file that breaks off, and
leave out what is joined to its end, all without an error. So the marks of the container are compared with the file
first. Each part then goes to a decoder as pieces of the file and a header whose counts are right, whichever decoder it
is.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

try:
    from .films_sam import bytes_at, find_joins, find_shortage, is_film, is_unknown, shortage
except ImportError:
    if __package__:
        raise
    from films_sam import bytes_at, find_joins, find_shortage, is_film, is_unknown, shortage

CHUNK = 1 << 16  # bytes that are searched at once


@dataclass
class Layout:
    """What a file holds.

    Args:
        parts (list): Sounds that follow one another, each a list of `bytes` and of ranges `(begin, end)` of the file.
        missing (`str`, *optional*): What shows that the file breaks off.
        seconds (`float`, *optional*): How much of a file that breaks off is there, if the container tells.
    """

    parts: list[list[Any]] = field(default_factory=list)
    missing: str | None = None
    seconds: float | None = None
    goes_on: int | None = None  # where the next of several files that were joined begins


def find_layout(stream: BinaryIO) -> Layout:
    """The parts of a file, and whether it breaks off. A container that says nothing of its length is one whole part.

    Args:
        stream: The file, open in binary mode and seekable.
    """
    size = stream.seek(0, io.SEEK_END)
    begin = _after_tags(stream, 0)
    start = bytes_at(stream, begin, 16)
    if re.match(WAVES, start, re.DOTALL):
        return _joined(_wave(stream, *limits) for limits in _wave_files(stream, begin, size))
    for magic, read in ((WAVE64, _wave64), (b".snd", _au), (b"dns.", _au), (b"caff", _caf)):
        if start.startswith(magic):
            layouts = [read(stream, begin, size)]
            while (following := layouts[-1].goes_on) is not None:
                layouts.append(read(stream, following, size))
            return _joined(layouts)
    if start[:4] == b"OggS":
        return _joined(_ogg(stream, *limits) for limits in _ogg_links(stream, begin, size))
    if start[:4] == b"fLaC":
        begins = [*_find(stream, re.compile(rb"fLaC[\0\x80]\0\0\x22"), begin, size)] or [begin]
        return _joined(_flac(stream, *limits) for limits in zip(begins, [*begins[1:], size]))
    if start[:4] == b"wvpk":
        return _wavpack(stream, size)
    # Zeros behind a tag, or the end of a frame in a recorded stream, may stand before the first frame.
    if _mpeg_frame(start[:4]) or (not is_film(start) and _has_frames(stream, begin)):
        segments = _mpeg_segments(stream, begin, size)
        if segments:
            return _joined(_mpeg_part(stream, segment, size) for segment in segments)
    begins = [0, *find_joins(stream, start, size)]
    parts: list[Any] = [[limits] for limits in zip(begins, [*begins[1:], size])]
    return Layout(parts, find_shortage(stream, start, size))


def _joined(layouts: Any) -> Layout:
    """One layout of files that follow one another."""
    layouts = list(layouts)
    short = next((layout for layout in layouts if layout.missing), Layout())
    seconds = short.seconds if len(layouts) == 1 else None
    return Layout([part for layout in layouts for part in layout.parts], short.missing, seconds)


def _after_tags(stream: BinaryIO, place: int) -> int:
    """The place behind ID3v2 tags."""
    while (head := bytes_at(stream, place, 10))[:3] == b"ID3" and len(head) == 10 and max(head[6:]) < 128:
        place += 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) + (10 if head[5] & 16 else 0)
    return place


def _find(stream: BinaryIO, pattern: re.Pattern, begin: int, size: int) -> Iterator[int]:
    """The places of a pattern of up to 16 bytes, in ascending order."""
    last = -1
    while begin < size:
        content = bytes_at(stream, begin, CHUNK + 16)
        for match in pattern.finditer(content):
            if begin + match.start() > last:
                last = begin + match.start()
                yield last
        begin += CHUNK


# -- Samples behind a header: WAV, AIFF, W64, AU, CAF -------------------------------------------------------------

WAVES = rb"(RIFF|RIFX|RF64|BW64)....WAVE|FORM....(AIF[FC]|8SVX|16SV)"
WAVE64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")
# How files of other kinds begin that were joined to samples.
OTHER_KINDS = re.compile(rb"fLaC|OggS|caff|wvpk|\x1aE\xdf\xa3|....ftyp", re.DOTALL)
# Chunks that stand behind samples, also where the file breaks off within them, and tags of players.
EXTRAS = re.compile(
    rb"LIST|[Ii][Dd]3|bext|iXML|cue |smpl|inst|fact|PEAK|JUNK|junk|PAD |_PMX|acid|levl|umid|axml|chna|plst|DISP|afsp"
    rb"|ANNO|NAME|AUTH|\(c\) |MARK|INST|MIDI|APPL|COMT|COMM|FVER|CHAN|TAG|APETAGEX|LYRICSBEGIN"
)


def _are_extras(stream: BinaryIO, place: int, size: int, order: Any) -> bool:
    """Whether chunks, tags or zeros follow, and no samples that the stated size leaves out."""
    while size - place >= 8:
        head = bytes_at(stream, place, 11)
        if EXTRAS.match(head):
            return True
        if not re.match(rb"[A-Za-z0-9 _.()-]{4}", head):
            break
        place += 8 + int.from_bytes(head[4:8], order)
        place += place & 1
    while 8 <= size - place and not any(content := bytes_at(stream, place, CHUNK)):
        place += len(content)
    return -8 < size - place < 8


def _samples(stream, begin, size, start, stated, per_second, counts, order) -> Layout:
    """The layout of a header from `begin` and its samples from `start`, of which it states `stated` bytes.

    `counts` are the fields to mend if that is wrong: place, number of bytes, and from where they count.
    """
    there, missing = size - start, None
    if not is_unknown(stated, counts[-1][1]):
        if stated > there:
            missing = shortage(start + stated - begin, size - begin)
        elif stated < there and bytes_at(stream, start + stated, 4) == bytes_at(stream, begin, 4):
            return Layout([[(begin, start + stated)]], goes_on=start + stated)
        elif stated < there and OTHER_KINDS.match(bytes_at(stream, start + stated, 12)):
            return Layout([[(begin, start + stated)], [(start + stated, size)]])
        elif stated >= there or any(_are_extras(stream, start + stated + odd, size, order) for odd in (0, stated & 1)):
            return Layout([[(begin, size)]])
    head = bytearray(bytes_at(stream, begin, max(0, start - begin)))
    for place, width, origin in counts:
        value = min(max(0, size - origin), (1 << 8 * width) - 1)
        head[place - begin : place - begin + width] = value.to_bytes(width, order)
    seconds = max(0, there) / per_second if per_second else None
    return Layout([[bytes(head), (start, max(start, size))]], missing, seconds)


def _wave_files(stream: BinaryIO, begin: int, size: int) -> Iterator[tuple[int, int]]:
    """Where each of the WAV or AIFF files begins and ends that were joined into one."""
    while True:
        head = bytes_at(stream, begin, 28)
        end = begin + 8 + int.from_bytes(head[4:8], "big" if head[:4] in (b"RIFX", b"FORM") else "little")
        if head[12:16] == b"ds64":
            end = begin + 8 + int.from_bytes(head[20:28], "little")
        if not re.match(WAVES, bytes_at(stream, end, 12), re.DOTALL):
            yield begin, size
            return
        yield begin, end
        begin = end


def _wave(stream: BinaryIO, begin: int, size: int) -> Layout:
    order: Any = "big" if bytes_at(stream, begin, 4) in (b"RIFX", b"FORM") else "little"
    counts, long_size = [(begin + 4, 4, begin + 8)], None
    place, per_second = begin + 12, 0
    while place < size and len(chunk := bytes_at(stream, place, 40)) >= 8:
        name, stated = chunk[:4], int.from_bytes(chunk[4:8], order)
        if name == b"ds64":
            long_size = int.from_bytes(chunk[16:24], "little")
            counts, long_place = [(place + 8, 8, begin + 8)], place + 16
        elif name == b"fmt ":
            per_second = int.from_bytes(chunk[16:20], order)
        elif name == b"COMM":
            exponent, mantissa = int.from_bytes(chunk[16:18], "big") - 16446, int.from_bytes(chunk[18:26], "big")
            width = int.from_bytes(chunk[8:10], "big") * (int.from_bytes(chunk[14:16], "big") + 7 >> 3)
            is_coded = stated > 18 and chunk[26:30] not in (
                b"NONE",
                b"sowt",
                b"twos",
                b"fl32",
                b"FL32",
                b"fl64",
                b"FL64",
            )
            per_second = int(width * mantissa * 2.0**exponent) if abs(exponent) < 80 and not is_coded else 0
        elif name in (b"data", b"SSND", b"BODY"):
            if long_size is not None and stated == 0xFFFFFFFF:
                stated, counts = long_size, [*counts, (long_place, 8, place + 8)]
            else:
                counts.append((place + 4, 4, place + 8))
            return _samples(stream, begin, size, place + 8, stated, per_second, counts, order)
        place += 8 + stated + (stated & 1)
    return Layout([[(begin, size)]], "its header is not complete" if place > size else None, 0.0)


def _wave64(stream: BinaryIO, begin: int, size: int) -> Layout:
    place, per_second = begin + 40, 0
    while len(chunk := bytes_at(stream, place, 40)) >= 24:
        stated = int.from_bytes(chunk[16:24], "little")  # with the 24 bytes of name and size
        if chunk[:4] == b"fmt ":
            per_second = int.from_bytes(chunk[32:36], "little")
        elif chunk[:4] == b"data":
            counts = [(begin + 16, 8, begin), (place + 16, 8, place)]
            stated = stated if is_unknown(stated, 8) else max(0, stated - 24)
            return _samples(stream, begin, size, place + 24, stated, per_second, counts, "little")
        place += max(24, (stated + 7) // 8 * 8)
    return Layout([[(begin, size)]])


def _au(stream: BinaryIO, begin: int, size: int) -> Layout:
    head = bytes_at(stream, begin, 24)
    order: Any = "big" if head[:1] == b"." else "little"
    start, stated, encoding, rate, channels = (int.from_bytes(head[at : at + 4], order) for at in range(4, 24, 4))
    width = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}.get(encoding, 0)
    start += begin
    if not begin + 24 <= start <= size:
        return Layout([[(begin, size)]])
    return _samples(stream, begin, size, start, stated, width * rate * channels, [(begin + 8, 4, start)], order)


CAF_CHUNKS = re.compile(rb"desc|data|pakt|kuki|chan|info|strg|free|mark|regn|inst|midi|ovvw|peak|edct|umid|uuid")


def _caf(stream: BinaryIO, begin: int, size: int) -> Layout:
    place, is_coded = begin + 8, False
    while len(head := bytes_at(stream, place, 24)) >= 12 and CAF_CHUNKS.match(head):
        stated = int.from_bytes(head[4:12], "big")
        after = place + 12 + stated
        if head[:4] == b"desc":
            is_coded = head[20:] not in (b"lpcm", b"alaw", b"ulaw")
        elif head[:4] == b"data" and not is_coded and not CAF_CHUNKS.match(bytes_at(stream, after, 4)):
            return _samples(stream, begin, size, place + 12, stated, 0, [(place + 4, 8, place + 12)], "big")
        place = size if is_unknown(stated, 8) else after
    if bytes_at(stream, place, 4) == b"caff":
        return Layout([[(begin, place)]], goes_on=place)
    return Layout([[(begin, size)]], shortage(place - begin, size - begin) if place > size else None)


# -- Ogg ----------------------------------------------------------------------------------------------------------


def _ogg_links(stream: BinaryIO, begin: int, size: int) -> Iterator[tuple[int, int]]:
    """Where each chain link begins and ends: the first pages of its streams stand together at its beginning."""
    after = -1
    for place in _find(stream, re.compile(rb"OggS\0[\2\3\6\7]"), begin, size):
        if after not in (-1, place):
            yield begin, place
            begin = place
        after = _page_end(bytes_at(stream, place, 27 + 255), place)
    yield begin, size


def _page_end(head: bytes, place: int) -> int:
    return place + 27 + head[26] + sum(head[27 : 27 + head[26]]) if len(head) > 27 else place


def _ogg(stream: BinaryIO, begin: int, end: int) -> Layout:
    place = max(begin, end - (1 << 16) - 300)  # a page has up to 65,307 bytes
    tail = bytes_at(stream, place, end - place)
    page = tail.rfind(b"OggS\0")
    is_last = page >= 0 and len(tail) > page + 27 and tail[page + 5] & 4
    is_whole = is_last and _page_end(tail[page : page + 282], page) <= len(tail)
    return Layout([[(begin, end)]], None if is_whole else "it ends without Ogg's last page")


# -- FLAC ---------------------------------------------------------------------------------------------------------


def _remainders(width: int, polynomial: int) -> list[int]:
    """The table of a cyclic redundancy check."""
    table = []
    for byte in range(256):
        value = byte << (width - 8)
        for _ in range(8):
            value = (value << 1) ^ (polynomial if value >> (width - 1) else 0)
        table.append(value & ((1 << width) - 1))
    return table


CRC8, CRC16 = _remainders(8, 0x107), _remainders(16, 0x18005)


def _flac(stream: BinaryIO, begin: int, end: int) -> Layout:
    """STREAMINFO's number of samples, 0 from encoders that write to a pipe, is compared with the last frame's."""
    info = bytearray(bytes_at(stream, begin, 42))
    place, is_last = begin + 4, False
    while not is_last and len(head := bytes_at(stream, place, 4)) == 4:
        is_last, place = head[0] >> 7 == 1, place + 4 + int.from_bytes(head[1:], "big")
    if not is_last or place >= end or len(info) < 42:
        return Layout([[(begin, end)]], "no frame is there", 0.0)
    longest, rate = int.from_bytes(info[15:18], "big"), int.from_bytes(info[18:21], "big") >> 4
    stated = (info[21] & 15) << 32 | int.from_bytes(info[22:26], "big")
    block_size = int.from_bytes(info[10:12], "big")
    worst = block_size * (1 + (info[20] >> 1 & 7)) * 4
    first, last = bytes_at(stream, place, 4), None
    for more in (256, 1 << 17):  # with tags
        tail_begin = max(place, end - 2 * (longest or worst) - more)
        tail = bytes_at(stream, tail_begin, end - tail_begin)
        ends = set()  # of the frames that were found, in samples
        for match in re.finditer(re.escape(first[:2]), tail):
            frame = _flac_frame(tail, match.start(), first, block_size)
            if frame is not None:
                if frame[0] == 0 or frame[0] in ends:  # goes on where another frame ends
                    last = (match.start(), *frame)
                ends.add(frame[1])
        if last is not None or tail_begin == place:
            break
    if last is None or last[2] == stated:
        return Layout([[(begin, end)]])
    at, there, total = last
    missing = None
    if stated > total or stated == 0:
        is_whole = _is_whole_frame(tail[at:])
        there = total if is_whole else there
        missing = None if is_whole else "its last frame is cut"
        if stated:
            missing = f"its header states {stated} samples and {there} are there"
    else:
        there = total
    info[21], info[22:26] = info[21] & 0xF0 | there >> 32, (there & 0xFFFFFFFF).to_bytes(4, "big")
    return Layout([[bytes(info), (begin + 42, end)]], missing, there / rate if rate else None)


def _flac_frame(tail: bytes, at: int, first: bytes, block_size: int) -> tuple[int, int] | None:
    """The first sample of the frame whose header stands at `at`, and the first of the next; `None` if none does."""
    head = tail[at : at + 17]
    if len(head) < 6 or (head[2] ^ first[2]) & 15 or (head[3] ^ first[3]) & 15 or head[2] >> 4 == 0:
        return None
    extra = 0 if head[4] < 128 else 8 - (head[4] ^ 255).bit_length() - 1  # bytes that follow, as in UTF-8
    number = head[4] & (127 if head[4] < 128 else 127 >> (extra + 1))
    for byte in head[5 : 5 + extra]:
        number = number << 6 | byte & 63
    code, place = head[2] >> 4, 5 + extra
    if code in (6, 7):
        samples = 1 + int.from_bytes(head[place : place + code - 5], "big")
        place += code - 5
    else:
        samples = 192 if code == 1 else 576 << (code - 2) if code < 6 else 256 << (code - 8)
    place += {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    check = 0
    for byte in head[:place]:
        check = CRC8[check ^ byte]
    if place >= len(head) or check != head[place]:
        return None
    begin = number if head[1] & 1 else number * block_size
    return begin, begin + samples


def _is_whole_frame(content: bytes) -> bool:
    """Whether a frame and nothing else but a tag stands here: the check over it with its own checksum is 0."""
    check, zeros = 0, []
    for place, byte in enumerate(content, start=1):
        check = (check << 8 & 0xFFFF) ^ CRC16[check >> 8 ^ byte]
        if check == 0 and place > 8:
            zeros.append(place)
    return any(place == len(content) or content[place:].startswith((b"TAG", b"APETAGEX", b"\0\0")) for place in zeros)


# -- MPEG audio ---------------------------------------------------------------------------------------------------

HEADERS = (b"Xing", b"Info", b"VBRI")
MPEG_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by the version's bits
KILOBITS = {  # by version 1 or later, and layer
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _mpeg_frame(head: bytes) -> tuple[int, tuple, int] | None:
    """The bytes of a frame, what does not change within a stream (version, layer, rate, whether mono), its samples."""
    if len(head) < 4 or head[0] != 255 or head[1] < 224:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    if version == 1 or layer == 4 or head[2] >> 4 in (0, 15) or head[2] >> 2 & 3 == 3:
        return None
    rate, later = MPEG_RATES[version][head[2] >> 2 & 3], 1 if version == 3 else 2
    bits = 1000 * KILOBITS[later, layer if later == 1 else min(layer, 2)][(head[2] >> 4) - 1]
    samples = 384 if layer == 1 else 576 if layer == 3 and later == 2 else 1152
    padding = head[2] >> 1 & 1
    length = (12 * bits // rate + padding) * 4 if layer == 1 else samples // 8 * bits // rate + padding
    return length, (version, layer, rate, head[3] >> 6 == 3), samples


@dataclass
class _Segment:
    """MPEG frames of one stream; `header` is the place and the content of its Xing, Info or VBRI frame."""

    kind: tuple
    samples: int
    ranges: list[list[int]]
    header: tuple[int, bytes] | None = None
    frames: int = 0
    rates: set[int] = field(default_factory=set)  # bit rates, as their numbers in the frames
    cut: int = 0  # bytes of a last frame that breaks off


def _mpeg_segments(stream: BinaryIO, place: int, size: int) -> list[_Segment]:
    """The streams of a file, which were joined if there are several: a new one begins with a header frame, behind a
    tag, or where the kind of the frames changes. What lies between frames is left out."""
    segments: list[_Segment] = []
    known: dict[bytes, Any] = {}
    begin, content, marks, joined = 0, b"", set(), True
    while place + 4 <= size:
        if not begin <= place <= begin + len(content) - 4:
            begin, content = place, bytes_at(stream, place, CHUNK)
            found = [begin + mark.start() for word in HEADERS for mark in re.finditer(word, content)]
            marks = {mark - offset for mark in found for offset in (13, 21, 36)}
            if begin + len(content) < place + 4:
                break
        head = content[place - begin : place - begin + 4]
        if head not in known:
            known[head] = _mpeg_frame(head)
        frame = known[head]
        segment = segments[-1] if segments else None
        is_new = frame is not None and (segment is None or frame[1] != segment.kind)
        if frame is None or (is_new and not _are_frames(stream, place, size, frame[1])):
            behind = _after_tags(stream, place)
            joined = joined or behind > place
            place = behind if behind > place else _next_frame(stream, place + 1, size)
            continue
        length, kind, samples = frame
        header = None
        if place in marks and kind[1] == 3:
            side = (17 if kind[3] else 32) if kind[0] == 3 else (9 if kind[3] else 17)
            inside = bytes_at(stream, place, length)
            if inside[4 + side : 8 + side] in HEADERS or inside[36:40] == b"VBRI":
                header = (place, inside)
        if segment is None or joined or header or kind != segment.kind:
            segment = _Segment(kind, samples, [[place, place]], header)
            segments.append(segment)
        joined = False
        if place + length > size:
            segment.cut = size - place
            break
        if segment.ranges[-1][1] != place:
            segment.ranges.append([place, place])
        place += length
        segment.ranges[-1][1] = place
        if header is None:
            segment.frames += 1
            segment.rates.add(head[2] >> 4)
    return segments


def _are_frames(stream: BinaryIO, place: int, size: int, kind: tuple) -> bool:
    """Whether three frames of a kind follow one another, or fewer up to the end."""
    for _ in range(3):
        frame = _mpeg_frame(bytes_at(stream, place, 4))
        if frame is None or frame[1] != kind:
            return False
        place += frame[0]
        if place + 4 > size:
            return True
    return True


def _has_frames(stream: BinaryIO, begin: int) -> bool:
    """Whether three frames follow one another near the beginning."""
    content = bytes_at(stream, begin, CHUNK)
    for match in re.finditer(rb"\xff[\xe2-\xff]", content):
        frame = _mpeg_frame(content[match.start() : match.start() + 4])
        if frame is not None and _are_frames(stream, begin + match.start(), 1 << 62, frame[1]):
            return True
    return False


def _next_frame(stream: BinaryIO, place: int, size: int) -> int:
    """The place of the next frame, or tag, behind other bytes; `size` if there is none."""
    for found in _find(stream, re.compile(rb"\xff[\xe2-\xff]|ID3[\2-\4]"), place, size):
        frame = _mpeg_frame(bytes_at(stream, found, 4))
        if frame is None and _after_tags(stream, found) > found:
            return found
        if frame is not None and _are_frames(stream, found, size, frame[1]):
            return found
    return size


def _mpeg_part(stream: BinaryIO, segment: _Segment, size: int) -> Layout:
    """A header frame's counts that are too small would end the sound. Without counts a decoder guesses the length by
    the first frame's bit rate, so that such a part gets a header frame."""
    ranges = [tuple(each) for each in segment.ranges]
    end = ranges[-1][1]
    seconds = segment.frames * segment.samples / segment.kind[2]
    has_known_length = segment.header is None and len(segment.rates) == 1 and len(ranges) == 1
    if segment.kind[1] != 3 or (has_known_length and not bytes_at(stream, ranges[0][0] + 2, 1)[0] & 2):
        return Layout([[*ranges]], None, seconds)
    missing, pieces = None, None
    if segment.header is not None:
        place, head = segment.header
        mark = min(head.find(word) for word in HEADERS if word in head)
        if head[mark : mark + 4] == b"VBRI":
            stated_bytes, stated = (int.from_bytes(head[mark + at : mark + at + 4], "big") for at in (10, 14))
        else:
            flags, at = int.from_bytes(head[mark + 4 : mark + 8], "big"), mark + 8
            stated = int.from_bytes(head[at : at + 4], "big") if flags & 1 else 0
            at += 4 * (flags & 1)
            stated_bytes = int.from_bytes(head[at : at + 4], "big") if flags & 2 else 0
            if flags & 1:
                counts = segment.frames.to_bytes(4, "big")
                counts += (sum(stop - begin for begin, stop in ranges)).to_bytes(4, "big") if flags & 2 else b""
                pieces = [head[: mark + 8] + counts + head[mark + 8 + len(counts) :]]
        # Only what both counts say: some encoders count the header frame or tags, too.
        short = stated > segment.frames and (not stated_bytes or stated_bytes > end + segment.cut - place)
        if short or (not stated and stated_bytes > end + segment.cut - place):
            missing = f"its header states {stated} frames, {stated_bytes} bytes, which is more than there is"
        if pieces and len(ranges) == 1 and stated in (segment.frames, segment.frames + 1) and not missing:
            return Layout([[(place, end)]], None, seconds)
        ranges[0] = (place + len(head), ranges[0][1])
    return Layout([[*(pieces or [_header_frame(stream, segment)]), *ranges]], missing, seconds)


def _header_frame(stream: BinaryIO, segment: _Segment) -> bytes:
    """An Info frame with the number of frames, of 64 kbit/s or more, in which it has room."""
    version, _, _, is_mono = segment.kind
    head = bytearray(bytes_at(stream, segment.ranges[0][0], 4))
    head[1], head[2] = head[1] | 1, 0x90 | head[2] & 0x0C  # without a checksum or padding
    found = _mpeg_frame(bytes(head))
    side = (17 if is_mono else 32) if version == 3 else (9 if is_mono else 17)
    counts = b"Info\0\0\0\1" + segment.frames.to_bytes(4, "big")
    return (bytes(head) + bytes(side) + counts).ljust(found[0] if found else 0, b"\0")


# -- WavPack ----------------------------------------------------------------------------------------------------------


def _wavpack(stream: BinaryIO, size: int) -> Layout:
    """Without the tags behind the last block, which decoders would read as blocks."""
    place, stated, there, missing = 0, 0, 0, None
    parts: list[list[Any]] = []
    while len(head := bytes_at(stream, place, 32)) == 32:
        if head[:4] != b"wvpk":  # a tag, behind which another file may stand that was joined
            place = next(_find(stream, re.compile(rb"wvpk[\s\S]{4}[\x02-\x10]\x04"), place, size), size)
            continue
        total, index, samples, flags = (int.from_bytes(head[at : at + 4], "little") for at in (12, 16, 20, 24))
        if not parts or (index == 0 and flags & 0x800):  # the first block of a sound
            missing = missing or _lacking(stated, there)
            stated, there = total if total != 0xFFFFFFFF else 0, 0
            parts.append([(place, place)])
        place += 8 + int.from_bytes(head[4:8], "little")
        there = index + samples
        parts[-1] = [(parts[-1][0][0], min(place, size))]
    missing = shortage(place, size) if place > size else missing or _lacking(stated, there)
    return Layout(parts, missing)


def _lacking(stated: int, there: int) -> str | None:
    return f"its header states {stated} samples and {there} are there" if there < stated else None
