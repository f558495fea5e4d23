"""Reads sound files by the decoders that are installed, in blocks: libsndfile, torchcodec, an `ffmpeg` program.

What follows the samples' way is a waveform ([`Waveform`]), which takes the blocks and may say that it has enough.
"""

import importlib
import io
import math
import os
import re
import shutil
import subprocess
import tempfile
import threading
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr
from transformers.utils import logging

try:
    from .containers_sam import find_layout
except ImportError:
    if __package__:
        raise
    from containers_sam import find_layout
try:
    from .films_sam import stated_seconds
except ImportError:
    if __package__:
        raise
    from films_sam import stated_seconds

logger = logging.get_logger(__name__)

SAMPLING_RATE = 16000  # Hz
FRAME_LENGTH = 400  # samples, 25 ms: the shortest clip
MAX_CHANNELS = 32
SAMPLING_RATES = (1000, 768000)  # Hz, smallest and largest of a file or an array
MAX_AMPLITUDE = 100.0  # 40 dB over full scale: such samples are integers passed as floats
BLOCK = 1 << 19  # samples of all channels that libsndfile decodes at once: 12 s of mono at 44.1 kHz
COUNTED = ("WAV", "WAVEX", "RF64", "AIFF", "AU", "W64", "CAF", "FLAC")  # libsndfile's frames are those of the layout
RANGE = 1 << 25  # samples of all channels that torchcodec decodes at once, 128 MiB
LONGEST_FRAME = 2048  # samples of a coded frame, as HE-AAC has
FFMPEG_SECONDS = 600  # after which ffmpeg is stopped
# FFmpeg reads only containers of sound and film, no playlists, which would open other files or the network.
CONTAINER_START = re.compile(
    rb"....(ftyp|moov|mdat|wide|free|skip)|\x1aE\xdf\xa3|OggS|RIFF|FORM|fLaC|ID3|\xff[\xe0-\xff]|0&\xb2u|#!AMR|FLV"
    rb"|caff|\x0bw|MAC |wvpk|\.RMF|\.snd|\x00\x00\x01\xba|G",
    re.DOTALL,
)
FFMPEG_FORMATS = "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,rm,w64,wav,wv"
BREAKS_OFF = re.compile("partial file|ended prematurely|truncated|Truncated|corrupt")
INSTALL = (
    "If it is audio, such as m4a or webm, install torchcodec or put ffmpeg on the PATH, or convert it to WAV or FLAC."
)


class Pieces(io.RawIOBase):
    """A read-only file made of bytes and of ranges of another file, one behind the other.

    Args:
        stream: The other file, open in binary mode and seekable.
        pieces (list of `bytes` or `(begin, end)`): What the new file consists of.
    """

    def __init__(self, stream: BinaryIO, pieces: list[Any]):
        self.stream, self.place, self.size = stream, 0, 0
        self.pieces: list[tuple[int, int, Any]] = []  # where each begins and ends in the new file
        for piece in pieces:
            length = len(piece) if isinstance(piece, bytes) else piece[1] - piece[0]
            self.pieces.append((self.size, self.size + length, piece))
            self.size += length

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = min(max(0, offset + (0, self.place, self.size)[whence]), 1 << 62)  # damaged files seek anywhere
        return self.place

    def tell(self) -> int:
        return self.place

    def read(self, count: int = -1) -> bytes:
        stop = self.size if count is None or count < 0 else min(self.size, self.place + count)
        found = []
        for begin, end, piece in self.pieces:
            if begin <= self.place < min(end, stop):
                if isinstance(piece, bytes):
                    found.append(piece[self.place - begin : stop - begin])
                else:
                    self.stream.seek(piece[0] + self.place - begin)
                    found.append(self.stream.read(min(end, stop) - self.place))
                self.place += len(found[-1])
        return found[0] if len(found) == 1 else b"".join(found)

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


# -- Samples ----------------------------------------------------------------------------------------------------------


class Waveform:
    """Makes a waveform of blocks of samples: mixes the channels and resamples, so that no more is held than asked for.

    Args:
        name (`str`): The clip's name in messages.
        max_seconds (`float`, *optional*): The longest clip; longer ones are refused.
        duration (`float`, *optional*): Keep the first seconds only.
    """

    has_warned = False  # of a mean that loses the sound, in this process

    def __init__(self, name: str, max_seconds: float | None, duration: float | None):
        for argument, value in (("max_seconds", max_seconds), ("duration", duration)):
            if value is not None and not value > 0:
                raise ValueError(f"{argument}: got {value!r}, expected a positive number of seconds, or None.")
        self.name, self.max_seconds, self.duration = name, max_seconds, duration
        self.parts: list[np.ndarray] = []  # at 16 kHz
        self.seconds = 0.0
        self.rate = SAMPLING_RATE
        self.waiting: list[np.ndarray] = []  # blocks of another rate, one alone is resampled at once, which is quicker
        self.resampler: Any = None
        self.energies: np.ndarray | None = None  # of the mix and of each channel

    def check(self, rate: Any, channels: int) -> None:
        """Raises `ValueError` for a rate or a number of channels that is out of range."""
        check_rate(rate, self.name)
        if channels > MAX_CHANNELS:
            raise ValueError(f"audio: {self.name} has {channels} channels, expected at most {MAX_CHANNELS}.")

    def check_length(self, seconds: float) -> None:
        """Raises `ValueError` for a clip that is too long, unless only its beginning is read."""
        if self.duration is None and self.max_seconds is not None and seconds > self.max_seconds:
            raise ValueError(
                f"audio: {self.name} is longer than {self.max_seconds:g} s, expected at most max_seconds; raise "
                "max_seconds (None is no limit), or read its beginning with duration=..."
            )

    def add(self, samples: np.ndarray, rate: int) -> bool:
        """Takes `[samples]` or `[samples, channels]`; returns whether that is enough for `duration`."""
        if rate != self.rate:
            self.end_part()
            self.rate = rate
        if self.duration is not None:  # with what the resampling needs beyond the end
            samples = samples[: math.ceil((self.duration + 0.1 - self.seconds) * rate)]
        self.seconds += len(samples) / rate
        self.check_length(self.seconds)
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite or NaN is refused
            mono = (samples if samples.ndim == 1 else self._mix(samples.T)).astype(np.float32, copy=False)
        peak = float(np.abs(mono).max(initial=0.0))
        if not math.isfinite(peak):
            raise ValueError(f"audio: {self.name} has samples that are not finite (NaN or infinity).")
        if peak > MAX_AMPLITUDE:
            raise ValueError(
                f"audio: {self.name} has samples up to {peak:.6g}, expected about [-1, 1]; divide 16-bit samples by "
                "32768, or pass them as int16."
            )
        if rate == SAMPLING_RATE:
            self.parts.append(mono)
        else:
            self.waiting.append(mono)
            if self.resampler is None and len(self.waiting) > 1:
                self.resampler = soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32", quality="HQ")
            if self.resampler is not None:
                self.parts += [self.resampler.resample_chunk(block) for block in self.waiting]
                self.waiting = []
        return self.duration is not None and self.seconds >= self.duration + 0.1

    def end_part(self) -> None:
        """Ends the resampling: what follows is another sound."""
        if sum(map(len, self.waiting)):
            self.parts.append(soxr.resample(self.waiting[0], self.rate, SAMPLING_RATE, quality="HQ"))
        elif self.resampler is not None:
            self.parts.append(self.resampler.resample_chunk(np.empty(0, np.float32), last=True))
        self._warn_of_mix()
        self.waiting, self.resampler, self.energies = [], None, None

    def samples(self) -> np.ndarray:
        """What was taken, float32 at 16 kHz."""
        self.end_part()
        waveform = self.parts[0] if len(self.parts) == 1 else np.concatenate([np.empty(0, np.float32), *self.parts])
        if self.duration is not None:
            waveform = waveform[: math.ceil(self.duration * SAMPLING_RATE)]
        if len(waveform) < FRAME_LENGTH:
            raise ValueError(
                f"audio: {self.name} has {len(waveform)} samples at {SAMPLING_RATE} Hz, expected at least "
                f"{FRAME_LENGTH} (25 ms)."
            )
        return np.ascontiguousarray(waveform, dtype=np.float32)

    def _mix(self, channels: np.ndarray) -> np.ndarray:
        """The mean of `[channels, samples]`, channel by channel: NumPy's takes twenty times as long over so short an
        axis, and more time than decoding a stereo file."""
        if len(channels) == 1:
            return channels[0]
        total = channels[0]
        for channel in channels[1:]:
            total = total + channel
        mix = total / np.asarray(len(channels), channels.dtype)
        if not Waveform.has_warned:
            of_mix, flat = (
                float(np.dot(mix, mix)),
                channels.ravel(order="K"),
            )  # no copy, and quick, unlike one channel's
            energies = np.array([of_mix] + [0.0] * len(channels))
            if of_mix < np.dot(flat, flat) / 20:
                energies[1:] = [np.dot(channel, channel) for channel in channels]
            self.energies = energies if self.energies is None else self.energies + energies
        return mix

    def _warn_of_mix(self) -> None:
        """Warns once of a mean that loses the sound. Sound on one of two channels (a quarter of its energy) is heard
        well, on one of six (a thirty-sixth) it is not; six channels that are alike in loudness have a sixth."""
        if self.energies is None or Waveform.has_warned:
            return
        mix, loudest = self.energies[0], self.energies[1:].max()
        if mix < loudest / 20 and loudest > 1e-6 * self.seconds * self.rate:
            Waveform.has_warned = True
            loss = f"{10 * math.log10(loudest / mix):.0f} dB" if mix > 0 else "infinitely"
            logger.warning(
                f"{self.name}: the mean of its {len(self.energies) - 1} channels is {loss} weaker than the loudest "
                "channel, since channels in antiphase cancel and quiet ones drown a loud one. To use one channel, "
                "pass its samples with sampling_rate. Further clips like this are not named."
            )


def check_rate(rate: Any, name: str) -> int:
    """An integer in [`SAMPLING_RATES`], or `ValueError`."""
    low, high = SAMPLING_RATES
    number = float(rate) if isinstance(rate, (int, float, np.number)) and not isinstance(rate, bool) else math.nan
    if not low <= number <= high or number != int(number):
        raise ValueError(f"sampling_rate: got {rate!r} for {name}, expected an integer from {low} to {high} Hz.")
    return int(number)


# -- Files ------------------------------------------------------------------------------------------------------------


class UndecodableError(Exception):
    """A decoder's reason why it cannot read a file."""


def read_sound(file: str | bytes, name: str, waveform: Waveform, incomplete: str = "error") -> None:
    """Decodes a file into a [`Waveform`], to its end, or until that has enough.

    Args:
        file (`str` or `bytes`): A path, or the content.
        name (`str`): The file's name in messages.
        waveform ([`Waveform`]): What takes the samples.
        incomplete (`str`, *optional*, defaults to `"error"`): `"keep"` takes what is there of a file that breaks off.

    Raises:
        ValueError: A file that is empty, breaks off, is damaged, or that no decoder that is installed reads.
    """
    with open(file, "rb") if isinstance(file, str) else io.BytesIO(file) as stream:
        size = stream.seek(0, io.SEEK_END)
        if not size:
            raise ValueError(f"audio: {name} is empty.")
        layout = find_layout(stream)
        if layout.missing and incomplete == "error":
            seconds = _seconds(file, name) if layout.seconds is None else layout.seconds
            raise ValueError(_broken(name, layout.missing, seconds))
        # Decoders take a name for UTF-8, which the system does not.
        has_name = isinstance(file, bytes) or os.fsencode(file) == file.encode("utf-8", "replace")
        for pieces in layout.parts:
            source: Any = file if has_name and pieces == [(0, size)] else Pieces(stream, pieces)
            if _read_part(source, name, waveform, incomplete == "keep"):
                return
            waveform.end_part()


def _broken(name: str, missing: str, seconds: float) -> str:
    missing = missing.rstrip(". ")
    if not seconds:
        return (
            f"audio: {name} breaks off after 0.00 s, as nothing of it can be decoded: {missing}. Get the whole file."
        )
    return (
        f"audio: {name} breaks off after {seconds:.2f} s: {missing}. Get the whole file, or take what is there with "
        "incomplete='keep' (--incomplete keep)."
    )


class _Counter(Waveform):
    """Counts seconds, and keeps nothing."""

    def add(self, samples: np.ndarray, rate: int) -> bool:
        self.seconds += len(samples) / rate
        return False


def _seconds(file: str | bytes, name: str) -> float:
    """How much of a file that breaks off can be decoded."""
    counter = _Counter(name, None, None)
    try:
        read_sound(file, name, counter, "keep")
    except ValueError:
        pass
    return counter.seconds


def _read_part(source: Any, name: str, waveform: Waveform, keep: bool) -> bool:
    """Decodes one sound by the first decoder that opens it; returns whether the waveform has enough."""
    try:
        sound = soundfile.SoundFile(_opened(source))
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless .raw, by the file's name
        reasons = [f"libsndfile: {getattr(error, 'error_string', error)}"]
    else:
        with sound:
            return _read_soundfile(sound, source, name, waveform, keep)
    if CONTAINER_START.match(_content(source, 16)) is None:
        raise ValueError(f"audio: {name} is no known kind of audio file ({reasons[0]}).")
    try:
        decoder = importlib.import_module("torchcodec.decoders").AudioDecoder
    except Exception as error:  # a missing FFmpeg library raises RuntimeError, OSError or ImportError
        reasons.append(f"torchcodec: cannot be imported ({type(error).__name__})")
    else:
        try:
            opened = decoder(_rewound(source))
        except (RuntimeError, ValueError, OSError) as error:
            reasons.append(f"torchcodec: {' '.join(str(error).split())[:200]}")
        else:
            try:
                return read_decoder(opened, name, waveform, keep)
            except UndecodableError as error:
                reasons.append(f"torchcodec: {error}")
    program = shutil.which("ffmpeg")
    if program is None:
        reasons.append("ffmpeg: not on the PATH")
    else:
        try:
            return _read_ffmpeg(program, source, name, waveform, keep)
        except UndecodableError as error:
            reasons.append(f"ffmpeg: {error}")
    raise ValueError(f"audio: {name} cannot be decoded ({'; '.join(reasons)}). {INSTALL}")


def _rewound(source: Any) -> Any:
    if isinstance(source, Pieces):
        source.seek(0)
    return source


def _opened(source: Any) -> Any:
    """A path, or a binary file at its beginning."""
    return Pieces(io.BytesIO(), [source]) if isinstance(source, bytes) else _rewound(source)


def _content(source: Any, count: int) -> bytes:
    if isinstance(source, str):
        with open(source, "rb") as stream:
            return stream.read(count)
    return source[:count] if isinstance(source, bytes) else _rewound(source).read(count)


# -- libsndfile ---------------------------------------------------------------------------------------------------


def _read_soundfile(sound: soundfile.SoundFile, source: Any, name: str, waveform: Waveform, keep: bool) -> bool:
    rate, done, size = sound.samplerate, 0, BLOCK // sound.channels
    waveform.check(rate, sound.channels)
    if sound.format in COUNTED:
        waveform.check_length(sound.frames / rate)
    try:
        # In blocks: the number of frames in the header may be wrong, and must not decide how much memory is allocated.
        while len(block := sound.read(size, dtype="float32", always_2d=True)):
            done += len(block)
            if waveform.add(block, rate):
                return True
        missing = "its last frame is damaged" if sound.format == "FLAC" and done < sound.frames else None
    except soundfile.SoundFileError as error:
        missing = f"libsndfile: {getattr(error, 'error_string', error)}"
        for block in _until_failure(source, done):
            done += len(block)
            if keep and waveform.add(block, rate):
                return True
    if missing and not keep:
        raise ValueError(_broken(name, missing, done / rate))
    return False


def _until_failure(source: Any, done: int):
    """The frames from `done` on, in small blocks, up to the one that cannot be decoded."""
    with soundfile.SoundFile(_opened(source)) as sound:
        size = BLOCK // sound.channels
        for _ in range(done // size):
            sound.read(size, dtype="float32", always_2d=True)
        try:
            while len(block := sound.read(1024, dtype="float32", always_2d=True)):
                yield block
        except soundfile.SoundFileError:
            return


# -- torchcodec ---------------------------------------------------------------------------------------------------


def read_decoder(decoder: Any, name: str, waveform: Waveform, keep: bool = False) -> bool:
    """Decodes by torchcodec's `AudioDecoder`, or by any object with `get_all_samples()`.

    Each range costs a decoding from the beginning, so that it has [`RANGE`] samples, and not fewer.
    """
    if not hasattr(decoder, "get_samples_played_in_range"):
        samples = decoder.get_all_samples()
        return _add_tensor(samples.data, samples.sample_rate, waveform)
    facts = decoder.metadata
    waveform.check(facts.sample_rate, facts.num_channels)
    seconds = RANGE / (facts.sample_rate * facts.num_channels)
    if waveform.duration is not None:
        seconds = min(seconds, waveform.duration + 1)
    # What is before zero is what a codec needs to begin with, no part of the clip.
    begin = place = max(facts.begin_stream_seconds_from_header or 0.0, 0.0)
    stated = facts.duration_seconds_from_header
    while True:
        overlap = min(1.0, seconds / 2) if place > begin else 0.0  # a range behind the end, which is not known, fails
        try:
            samples = decoder.get_samples_played_in_range(place - overlap, place + seconds)
        except (RuntimeError, IndexError) as error:
            if keep and seconds > 0.05:  # all of a range is lost: come nearer to what is there
                seconds /= 2
                continue
            if place == begin:
                raise UndecodableError(" ".join(str(error).split())[:200]) from error
            if keep:
                return False
            raise ValueError(_broken(name, f"torchcodec: {error}", place - begin)) from error
        rate, end = samples.sample_rate, samples.pts_seconds + samples.data.shape[1] / samples.sample_rate
        skip, stop, is_last = 0, samples.data.shape[1], end < place + seconds - 0.1
        if overlap:
            skip = round((place - samples.pts_seconds) * rate)
        if is_last and stated is not None and begin < 0.1:
            # What the encoder filled its last frame with, which ffmpeg cuts and torchcodec does not. A file that has
            # more than that behind the stated end states too little. MPEG streams, which begin later, state no end:
            # there it is the time of the last frame's beginning.
            filling = round((end - begin - stated) * rate)
            stop -= filling if 0 < filling <= LONGEST_FRAME else 0
        if stop > skip and _add_tensor(samples.data[:, skip:stop], rate, waveform):
            return True
        if is_last:
            return False
        place = end


def _add_tensor(data: Any, rate: int, waveform: Waveform) -> bool:
    data = data.reshape(-1, data.shape[-1])
    waveform.check(rate, len(data))
    return waveform.add(data.T.numpy(), rate)


# -- ffmpeg -------------------------------------------------------------------------------------------------------


def _read_ffmpeg(program: str, source: Any, name: str, waveform: Waveform, keep: bool) -> bool:
    """Decodes by the program, through a pipe, so that it writes no more than the waveform takes."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as messages:
        path = os.path.abspath(source) if isinstance(source, str) else os.path.join(folder, "input")
        if not isinstance(source, str):  # not by a pipe: the index of mp4 may be at the end
            with open(path, "wb") as handle:
                shutil.copyfileobj(_opened(source), handle)
        with open(path, "rb") as stream:
            stated = stated_seconds(stream)
        command = [program, "-nostdin", "-hide_banner", "-loglevel", "error"]
        # No network and no playlists, which would open other files.
        command += ["-protocol_whitelist", "file", "-format_whitelist", FFMPEG_FORMATS]
        # Sun's AU is six numbers and the samples, which leaves nothing to interpret: in W64, ffmpeg 5 marks float
        # samples in a way that libsndfile reads as integers.
        command += ["-i", "file:" + path, "-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages)
            output: Any = process.stdout
        except OSError as error:
            raise UndecodableError(str(error)) from error
        timer = threading.Timer(FFMPEG_SECONDS, process.kill)
        timer.start()
        try:
            is_enough, seconds = _read_au(output, waveform, stated)
            if is_enough:
                return True
            status = process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            output.close()
        messages.seek(0)
        lines = [line for line in messages.read(1 << 16).decode(errors="replace").splitlines() if line.strip()]
        if keep and seconds:
            return False
        if status:
            reason = f"stopped after {FFMPEG_SECONDS} s" if status == -9 else f"failed with status {status}"
            raise UndecodableError(lines[-1] if lines else reason)
        if missing := next((line for line in lines if BREAKS_OFF.search(line)), None):
            raise ValueError(_broken(name, f"ffmpeg: {missing}", seconds))
        return False


def _read_au(stream: BinaryIO, waveform: Waveform, stated: float | None = None) -> tuple[bool, float]:
    """Takes an AU file of big-endian float32 to its end; returns whether that is more than enough, and the seconds."""
    head = stream.read(24)
    if len(head) < 24:
        return False, 0.0
    magic, offset, _, encoding, rate, channels = (int.from_bytes(head[at : at + 4], "big") for at in range(0, 24, 4))
    if magic != 0x2E736E64 or encoding != 6:  # ".snd", 6 is float32
        raise UndecodableError("its output is no AU file of float32 samples")
    stream.read(offset - 24)
    waveform.check(rate, channels)
    done, width = 0, 4 * channels
    content = stream.read(size := (1 << 23) // width * width)
    while content:
        following = stream.read(size)
        samples = np.frombuffer(content, ">f4", len(content) // width * channels).reshape(-1, channels)
        done += len(samples)
        if not following and stated is not None:  # releases before 8 return what fills the last frame
            filling = done - round(stated * rate)
            samples = samples[: max(0, len(samples) - filling)] if 0 < filling <= LONGEST_FRAME else samples
        if waveform.add(samples.astype(np.float32), rate):
            return True, done / rate
        content = following
    return False, done / rate
