"""Files that lie about their length: joined, broken off, never finished, or far larger than they look."""

import io
import os
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from shared import NO_TORCHCODEC

import sound_files_sam
from audio_sam import SamFeatureExtractor, load_audio, read_windows
from containers_sam import find_layout
from films_sam import stated_seconds

ROOT = Path(__file__).resolve().parents[2]


def noise(seconds, rate=16000, channels=1, seed=0):
    """Noise below 1 kHz or so, which no codec drops, one sound in all channels."""
    raw = np.random.default_rng(seed).normal(size=round(seconds * rate))
    width = max(2, rate // 1000)
    sound = np.convolve(raw, np.ones(width) / width, mode="same")
    sound = (0.3 * sound / np.abs(sound).max()).astype(np.float32)
    return sound if channels == 1 else np.stack([sound] * channels, axis=1)


def encoded(sound, rate=16000, format="WAV", subtype=None, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, rate, format=format, subtype=subtype, **options)
    return buffer.getvalue()


def likeness(waveform, sound):
    """Correlation of a second with the original, at the place where it fits best; codecs delay."""
    part = sound[2000:18000]
    begin = np.correlate(waveform[:24000], part, "valid").argmax()
    return np.corrcoef(waveform[begin : begin + len(part)], part)[0, 1]


FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("W64", "PCM_16"),
    ("CAF", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]
LOSSY = ("OGG", "MP3")

# -- Joined files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "subtype"), FORMATS)
def test_joined_files_are_read_to_the_end(format, subtype):
    """Also the same file twice, whose serial numbers and counts are equal, and other rates and channels."""
    first, second = noise(1.84), noise(1.0, 48000, 2, seed=1)
    a, b = encoded(first, 16000, format, subtype), encoded(second, 48000, format, subtype)
    alone = [load_audio(a), load_audio(b)]
    for waveform, sound in zip(alone, (first, soxr.resample(second[:, 0], 48000, 16000))):
        assert abs(len(waveform) - len(sound)) <= 1 and likeness(waveform, sound) > 0.96
    np.testing.assert_array_equal(load_audio(a + a), np.concatenate([alone[0], alone[0]]))
    np.testing.assert_array_equal(load_audio(a + b + a), np.concatenate([alone[0], alone[1], alone[0]]))


@pytest.mark.parametrize(("format", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("CAF", "PCM_16")])
def test_another_kind_behind_samples_is_no_noise(format, subtype):
    first, second = encoded(noise(1.84), subtype="PCM_16"), encoded(noise(1.0, seed=1), 16000, format, subtype)
    np.testing.assert_array_equal(load_audio(first + second), np.concatenate([load_audio(first), load_audio(second)]))


def mp3_frames(content):
    """The lengths of an MP3's frames, by the tables of the standard."""
    bits, rates = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320), (44100, 48000, 32000)
    place, lengths = 0, []
    while place + 4 <= len(content):
        assert content[place] == 255 and content[place + 1] & 0xFE == 0xFA
        byte = content[place + 2]
        lengths.append(144000 * bits[byte >> 4] // rates[byte >> 2 & 3] + (byte >> 1 & 1))
        place += lengths[-1]
    return lengths


@pytest.fixture(scope="module")
def mp3():
    """An MP3 of 1.84 s of a variable bit rate, and where the frames in its Xing header are counted."""
    sound = noise(1.84, 44100) * np.linspace(0.01, 1, 81144, dtype=np.float32)
    content = encoded(sound, 44100, "MP3")
    return content, content.index(b"Xing") + 8, soxr.resample(sound, 44100, 16000)


@pytest.mark.parametrize("frames", [0, 1, 10, 60])
def test_an_mp3_whose_header_counts_too_little_is_read_to_the_end(mp3, frames):
    content, place, sound = mp3
    expected = load_audio(content)
    assert len(expected) == len(sound) == 29440 and likeness(expected, sound) > 0.95
    wrong = content[:place] + struct.pack(">I", frames) + content[place + 4 :]
    np.testing.assert_array_equal(load_audio(wrong), expected)
    np.testing.assert_array_equal(load_audio(wrong + wrong), np.concatenate([expected, expected]))


def test_an_mp3_without_a_header_and_with_tags_between_is_read_to_the_end(mp3, capfd):
    content, _, sound = mp3
    lengths = mp3_frames(content)
    plain = content[lengths[0] :]
    waveform = load_audio(plain)  # its length was guessed by the first frame's bit rate
    assert abs(len(waveform) / 16000 - (len(lengths) - 1) * 1152 / 44100) < 0.02
    assert likeness(waveform[:31000], sound) > 0.95
    tag, end = b"ID3\3\0\0\0\0\1\0" + b"\xff\xfb\x90\0" * 32, b"TAG" + bytes(125)
    for joined in (plain + tag + plain, tag + plain + end + tag + plain + end, tag + tag + plain + end + plain):
        assert abs(len(load_audio(joined)) - 2 * len(waveform)) < 600
    np.testing.assert_array_equal(load_audio(tag + content + end), load_audio(content))
    other = encoded(noise(1.0, 48000, 2), 48000, "MP3")
    other = other[mp3_frames(other)[0] :]
    assert abs(len(load_audio(plain + other)) / 16000 - len(waveform) / 16000 - 1.0) < 0.06
    assert capfd.readouterr().err == ""  # mpg123 has nothing to complain about


# -- Sizes that were never filled in ------------------------------------------------------------------------------


def with_sizes(content, *sizes, order="<"):
    """A WAV, AIFF or AU with the sizes of the file and of the samples replaced."""
    content = bytearray(content)
    for place, size in zip((4, content.index(b"data" if order == "<" else b"SSND") + 4), sizes):
        content[place : place + 4] = struct.pack(order + "I", size)
    return bytes(content)


@pytest.mark.parametrize("tail", [b"", b"\0", b"LIST\x1a\0\0\0INFOISFT\x0e\0\0\0Lavf60.16.100\0", b"TAG" + bytes(125)])
@pytest.mark.parametrize(
    "sizes",
    [(0, 0), (0xFFFFFFFF, 0xFFFFFFFF), (36, 0), (64036, 0), (64036, 1000), (1036, 1001), (0x7FFFF024, 0x7FFFF000)],
)
def test_a_wav_that_was_never_finished_is_read_to_its_end(sizes, tail):
    sound = noise(2.0)
    content = encoded(sound, subtype="PCM_16")
    expected = load_audio(content)
    np.testing.assert_array_equal(load_audio(with_sizes(content, *sizes)), expected)
    np.testing.assert_array_equal(load_audio(content + tail), expected)  # what follows is no sound


def test_other_headers_that_were_never_finished(tmp_path):
    sound = noise(2.0)
    expected = load_audio(encoded(sound, subtype="PCM_16"))
    aiff = encoded(sound, format="AIFF", subtype="PCM_16")
    for sizes in ((0, 0), (46, 8), (0xFFFFFFFF, 0xFFFFFFFF)):
        np.testing.assert_array_equal(load_audio(with_sizes(aiff, *sizes, order=">")), expected)
    au = encoded(sound, format="AU", subtype="PCM_16")
    for size in (0, 0xFFFFFFFF, 500):
        np.testing.assert_array_equal(load_audio(au[:8] + struct.pack(">I", size) + au[12:]), expected)
    for format, place in (("W64", -16), ("RF64", None), ("CAF", None)):
        content = bytearray(encoded(sound, format=format, subtype="PCM_16"))
        if format == "W64":
            place = content.index(b"data") + 16
        elif format == "RF64":
            place = content.index(b"ds64") + 16
        else:
            place = content.index(b"data") + 4
        for size in (b"\0" * 8, b"\xff" * 8):
            content[place : place + 8] = size
            np.testing.assert_array_equal(load_audio(bytes(content)), expected, err_msg=f"{format} {size}")


@pytest.mark.parametrize("count", [0, 1, 1000, 31999])
def test_a_flac_whose_header_counts_too_little_is_read_to_the_end(count, tmp_path):
    content = bytearray(encoded(noise(2.0), format="FLAC"))
    expected = load_audio(bytes(content))
    assert len(expected) == 32000
    content[21], content[22:26] = content[21] & 0xF0, struct.pack(">I", count)
    np.testing.assert_array_equal(load_audio(bytes(content)), expected)
    (tmp_path / "a.flac").write_bytes(content)
    np.testing.assert_array_equal(load_audio(tmp_path / "a.flac"), expected)


# -- Files that break off -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_ffmpeg", [False, True])
@pytest.mark.parametrize(("format", "subtype"), FORMATS)
@pytest.mark.parametrize("share", [0.4, 0.7, 0.99])
def test_a_file_that_breaks_off_is_refused_or_kept(
    format, subtype, share, with_ffmpeg, tmp_path, request, monkeypatch
):
    if with_ffmpeg:
        request.getfixturevalue("real_ffmpeg")
    else:
        monkeypatch.setenv("PATH", "")
    sound = noise(6.0)
    content = encoded(sound, 16000, format, subtype)
    whole = load_audio(content)
    cut = content[: round(share * len(content))]
    path = tmp_path / "a.sound"
    path.write_bytes(cut)
    for duration in (None, 1.0):  # also where only the beginning is read
        for source in (cut, path, str(path), io.BytesIO(cut)):
            with pytest.raises(ValueError, match=r"breaks off after \d\.\d\d s: .*incomplete='keep'") as raised:
                load_audio(source, duration=duration)
    kept = load_audio(cut, incomplete="keep")
    assert abs(float(str(raised.value).split(" breaks off after ")[1].split()[0]) - len(kept) / 16000) < 0.1
    # Ogg's and FLAC's pages and frames are lost as a whole.
    assert 0.2 < len(kept) / len(sound) < share + 0.03
    length = len(kept) - 2000
    np.testing.assert_allclose(kept[:length], whole[:length], atol=0.02 if format in LOSSY else 0)


def test_a_wav_that_lost_only_what_follows_the_samples_is_whole():
    content = encoded(noise(1.0), subtype="PCM_16") + b"LIST\x1a\0\0\0INFOISFT\x0e\0\0\0Lavf60.16.100\0"
    content = content[:4] + struct.pack("<I", len(content) - 8) + content[8:-10]
    assert len(load_audio(content)) == 16000


def test_an_mp3_that_breaks_off_is_known_by_a_header_only(mp3):
    content, place, _ = mp3
    lengths = mp3_frames(content)
    cut = content[: len(content) // 2]
    with pytest.raises(ValueError, match=r"breaks off after 0\.89"):
        load_audio(cut)
    assert len(load_audio(cut, incomplete="keep")) < 16000
    assert len(load_audio(cut[lengths[0] :])) < 16000  # nothing tells
    # A count of frames that includes the header's own is no loss.
    assert abs(len(load_audio(content[:place] + struct.pack(">I", len(lengths)) + content[place + 4 :])) - 29440) < 600


CODED = [
    ("a.m4a", ["-c:a", "aac"]),
    ("b.m4a", ["-c:a", "aac", "-movflags", "+faststart"]),
    ("c.m4a", ["-c:a", "alac"]),
    ("a.webm", ["-ar", "48000", "-c:a", "libopus"]),
    ("a.mka", ["-c:a", "aac"]),
    ("a.wma", ["-c:a", "wmav2"]),
    ("a.wv", ["-c:a", "wavpack"]),
]


@pytest.fixture(scope="module")
def torchcodec():
    return pytest.importorskip("torchcodec.decoders", reason=NO_TORCHCODEC, exc_type=Exception)


@pytest.mark.parametrize("reader", ["ffmpeg", "torchcodec"])
@pytest.mark.parametrize(("name", "options"), CODED)
def test_a_coded_file_that_breaks_off(name, options, reader, tmp_path, request, monkeypatch):
    decoders = request.getfixturevalue("torchcodec") if reader == "torchcodec" else None
    request.getfixturevalue("real_ffmpeg")
    sound = noise(6.0)
    soundfile.write(tmp_path / "in.wav", sound, 16000)
    subprocess.run(["ffmpeg", "-loglevel", "error", "-i", "in.wav", *options, name], cwd=tmp_path, check=True)
    if reader == "torchcodec":
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
        monkeypatch.setenv("PATH", "")
    content = (tmp_path / name).read_bytes()
    whole = load_audio(content)
    assert abs(len(whole) - 96000) < 3000 and likeness(whole, sound) > 0.95
    beginning = load_audio(tmp_path / name, duration=1.5)
    np.testing.assert_allclose(beginning, whole[:24000], atol=1e-6)
    cut = content[: len(content) // 2]
    has_index_last = name in ("a.m4a", "c.m4a")
    nothing = "breaks off after 0.00 s, as nothing of it can be decoded: .*Get the whole file.$"
    with pytest.raises(ValueError, match=nothing if has_index_last else r"after \d\.\d\d s: .*incomplete='keep'"):
        load_audio(cut)
    if name != "a.wv" and not has_index_last:  # ffmpeg before 8 drops a cut WavPack
        kept = load_audio(cut, incomplete="keep")
        assert 1.5 < len(kept) / 16000 < 4.5
        assert likeness(kept, sound[: len(kept) - 4000]) > 0.95


@pytest.mark.parametrize(("name", "options"), [*CODED, ("d.m4a", ["-ar", "44100", "-c:a", "aac"])])
def test_torchcodec_reads_the_samples_that_ffmpeg_reads(name, options, tmp_path, torchcodec, real_ffmpeg, monkeypatch):
    """Also at the ends: what fills the first and the last frame is no part of the clip."""
    soundfile.write(tmp_path / "in.wav", noise(2.3456), 16000)
    subprocess.run([real_ffmpeg, "-loglevel", "error", "-i", "in.wav", *options, name], cwd=tmp_path, check=True)
    expected = load_audio(tmp_path / name)
    if name.endswith(".m4a"):
        assert abs(len(expected) - round(2.3456 * 16000)) <= 2
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", torchcodec)
    monkeypatch.setenv("PATH", "")
    found = load_audio(tmp_path / name)
    # FFmpeg's releases differ in how much of a last frame of WMA they return.
    assert abs(len(found) - len(expected)) <= (512 if name.endswith(".wma") else 2)
    length = min(len(found), len(expected)) - 200  # the resampler looks ahead
    np.testing.assert_allclose(found[:length], expected[:length], atol=2e-3)


@pytest.mark.parametrize("options", [["-c:a", "aac"], ["-c:a", "aac", "-movflags", "+faststart"], ["-c:a", "alac"]])
def test_an_mp4_states_the_length_of_what_was_encoded(options, tmp_path, real_ffmpeg):
    """By which the filling of the last frame is cut, that ffmpeg returns before its release 8."""
    soundfile.write(tmp_path / "in.wav", noise(2.3456), 16000)
    subprocess.run([real_ffmpeg, "-loglevel", "error", "-i", "in.wav", *options, "a.m4a"], cwd=tmp_path, check=True)
    with open(tmp_path / "a.m4a", "rb") as file:
        assert stated_seconds(file) == round(2.3456 * 16000) / 16000
    assert len(load_audio(tmp_path / "a.m4a")) == round(2.3456 * 16000)
    assert stated_seconds(io.BytesIO(encoded(noise(1.0)))) is None


@pytest.mark.parametrize("reader", ["ffmpeg", "torchcodec"])
def test_a_long_coded_file_has_no_seams(reader, tmp_path, request, monkeypatch):
    """torchcodec reads in ranges, ffmpeg through a pipe."""
    decoders = request.getfixturevalue("torchcodec") if reader == "torchcodec" else None
    request.getfixturevalue("real_ffmpeg")
    monkeypatch.setattr(sound_files_sam, "RANGE", 2 * 48000 * 3)
    sound = noise(20, 48000, 2)
    soundfile.write(tmp_path / "in.wav", sound, 48000)
    subprocess.run(["ffmpeg", "-loglevel", "error", "-i", "in.wav", "-c:a", "alac", "a.m4a"], cwd=tmp_path, check=True)
    if reader == "torchcodec":
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
        monkeypatch.setenv("PATH", "")
    np.testing.assert_allclose(load_audio(tmp_path / "a.m4a"), load_audio(tmp_path / "in.wav"), atol=1e-6)


# -- Bombs --------------------------------------------------------------------------------------------------------


def silence(path, hours, rate=16000, channels=1):
    """A FLAC of nothing, block by block."""
    with soundfile.SoundFile(path, "w", rate, channels, "PCM_16", format="FLAC") as file:
        block = np.zeros((rate * 60, channels), np.int16)
        for _ in range(round(hours * 60)):
            file.write(block)


LIMITED = """
import resource, sys
sys.path.insert(0, {root!r})
import torch
from audio_sam import load_audio
torch.set_num_threads(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20), -1))
for path, options in {calls!r}:
    try:
        print(len(load_audio(path, **options)))
    except ValueError as error:
        print(error)
"""


def limited(*calls):
    """`load_audio` in a process that may take 600 MiB more than its libraries: the lengths, or the errors."""
    code = LIMITED.format(root=str(ROOT), calls=[(str(path), options) for path, options in calls])
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.splitlines()


def test_a_small_file_of_many_hours_takes_no_memory(tmp_path):
    silence(tmp_path / "a.flac", 4, 4000)
    silence(tmp_path / "b.flac", 0.03, 192000, 8)  # 660 MB as float32
    assert (tmp_path / "a.flac").stat().st_size < 1_000_000
    calls = [(tmp_path / "a.flac", {}), (tmp_path / "a.flac", {"duration": 10.0}), (tmp_path / "b.flac", {})]
    error, *lengths = limited(*calls)
    assert "a.flac' is longer than 10800 s, expected at most max_seconds" in error
    assert lengths == ["160000", f"{round(0.03 * 60) * 60 * 16000}"]


def test_a_coded_file_of_many_hours_takes_no_memory(tmp_path, real_ffmpeg):
    command = [real_ffmpeg, "-loglevel", "error", "-f", "lavfi", "-i", "anullsrc=r=8000:cl=mono", "-t", "4000"]
    subprocess.run([*command, "-c:a", "aac", "-b:a", "8k", str(tmp_path / "a.m4a")], check=True)
    path = tmp_path / "a.m4a"
    error, length = limited((path, {"max_seconds": 1000}), (path, {"duration": 10.0}))
    assert "a.m4a' is longer than 1000 s, expected at most max_seconds" in error and length == "160000"


def test_max_seconds_and_duration():
    sound = noise(3.0)
    for source, rate in ((encoded(sound), None), (sound, 16000), (noise(3.0, 44100), 44100)):
        with pytest.raises(
            ValueError, match=r"is longer than 2\.5 s, expected at most max_seconds; raise max_seconds"
        ):
            load_audio(source, rate, max_seconds=2.5)
        assert len(load_audio(source, rate, max_seconds=3)) == len(load_audio(source, rate, max_seconds=None)) == 48000
        whole, part = load_audio(source, rate), load_audio(source, rate, duration=1.25, max_seconds=1)
        assert len(part) == 20000
        np.testing.assert_allclose(part, whole[:20000], atol=1e-6)
        assert len(load_audio(source, rate, duration=9.0)) == 48000
    for name in ("max_seconds", "duration"):
        with pytest.raises(ValueError, match=f"{name}: got 0, expected a positive number"):
            load_audio(sound, 16000, **{name: 0})
    with pytest.raises(ValueError, match="incomplete: got 'yes', expected one of 'error', 'keep'"):
        load_audio(encoded(sound), incomplete="yes")


def test_truncating_decodes_only_what_is_used(tmp_path, monkeypatch):
    """The features are those of the whole clip, since the mean of each frame is subtracted anyway."""
    sound = noise(120.0, 44100, 2) + np.float32(0.05)
    sound[44100 * 20 :] += 0.3
    soundfile.write(tmp_path / "a.flac", sound, 44100)
    taken = []
    add = sound_files_sam.Waveform.add
    monkeypatch.setattr(
        sound_files_sam.Waveform, "add", lambda self, block, rate: taken.append(len(block)) or add(self, block, rate)
    )
    extractor = SamFeatureExtractor()
    part = load_audio(tmp_path / "a.flac", **extractor.reading("truncate"))
    assert sum(taken) < 30 * 44100 and extractor.center(part)[1]
    whole = load_audio(tmp_path / "a.flac")
    assert sum(taken) > 120 * 44100
    np.testing.assert_array_equal(part, whole[: len(part)])
    features = [extractor(each, 16000, "np", "truncate")["input_features"] for each in (part, whole)]
    np.testing.assert_allclose(*features, atol=1e-4)


def test_how_files_are_read_is_a_setting_that_is_not_saved(tmp_path):
    cut = encoded(noise(20.0))[:300_000]
    extractor = SamFeatureExtractor()
    with pytest.raises(ValueError, match=r"breaks off after 9\.37 s"):
        read_windows(cut, extractor)
    extractor.incomplete = "keep"
    assert read_windows(cut, extractor)[0][0]["seconds"] == pytest.approx(9.374, abs=2e-3)
    extractor.max_seconds = 5
    with pytest.raises(ValueError, match="longer than 5 s"):
        read_windows(cut, extractor)
    extractor.save_pretrained(tmp_path)
    loaded = SamFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.incomplete == "error" and loaded.max_seconds == 10800
    assert "incomplete" not in (tmp_path / "preprocessor_config.json").read_text()


# -- The mean of the channels -------------------------------------------------------------------------------------


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(sound_files_sam.logger, "warning", lines.append)
    monkeypatch.setattr(sound_files_sam.Waveform, "has_warned", False)
    return lines


def test_a_mean_that_loses_the_sound_is_warned_of_once(tmp_path, warnings):
    sound = noise(1.0)
    inverted = np.stack([sound, -sound], axis=1)
    loud = np.zeros((16000, 6), np.float32)
    loud[:, 2] = sound
    soundfile.write(tmp_path / "antiphase.wav", inverted, 16000)
    soundfile.write(tmp_path / "center.wav", loud, 16000)
    load_audio(tmp_path / "antiphase.wav")
    load_audio(tmp_path / "antiphase.wav")
    assert len(warnings) == 1 and "antiphase.wav" in warnings[0] and "mean of its 2 channels" in warnings[0]
    sound_files_sam.Waveform.has_warned = False
    waveform = load_audio(tmp_path / "center.wav")
    assert len(warnings) == 2 and "center.wav" in warnings[1] and "16 dB weaker" in warnings[1]
    np.testing.assert_allclose(waveform, sound / 6, atol=1e-4)  # the mean all the same
    sound_files_sam.Waveform.has_warned = False
    load_audio(inverted.T, 16000)
    assert "an array of shape (2, 16000)" in warnings[2]


def test_ordinary_stereo_is_not_warned_of(warnings):
    left, right = noise(1.0), noise(1.0, seed=1)
    for pair in (
        (left, right),
        (left, 0 * left),
        (left, 0.5 * left),
        (left, -0.5 * left + right),
        (0 * left, 0 * left),
    ):
        load_audio(np.stack(pair), 16000)
    surround = np.stack([noise(1.0, seed=number) for number in range(6)])
    load_audio(surround * np.array([[1.0], [1.0], [1.0], [0.3], [0.5], [0.5]], np.float32), 16000)
    assert not warnings


# -- Names --------------------------------------------------------------------------------------------------------


def test_an_existing_file_is_a_file_whatever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sound = noise(1.0)
    for name in ("data:x.wav", "data:audio,x.wav", "http:x.wav", "c:x.wav", "a\nb.wav"):
        soundfile.write(name, sound, 16000, format="WAV")
        assert len(load_audio(name)) == 16000
    with pytest.raises(FileNotFoundError, match=r"data:y\.wav"):
        load_audio("data:y.wav")


@pytest.mark.parametrize("head", ["data:audio/wav;base64,", "DATA:audio/x-wav;codecs=1;base64,", "data:;base64,"])
def test_data_urls_are_read(head):
    import base64
    from urllib.parse import quote

    sound = noise(1.0)
    text = base64.b64encode(encoded(sound, subtype="FLOAT")).decode()
    for content in (text, text.rstrip("="), text[:76] + "\r\n" + text[76:], quote(text)):
        np.testing.assert_array_equal(load_audio(head + content), sound)
    np.testing.assert_array_equal(load_audio({"path": head + text, "bytes": None}), sound)
    with pytest.raises(ValueError, match=r"a data: URL of \d+ characters breaks off") as raised:
        load_audio(head + text[:4000])
    assert len(str(raised.value)) < 400


def test_errors_show_nothing_of_a_file_that_is_no_sound(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    (tmp_path / "key.wav").write_text("password=topsecret\n" * 9)
    with pytest.raises(ValueError, match=r"key\.wav.* no known kind") as raised:
        load_audio(tmp_path / "key.wav")
    assert "password" not in str(raised.value) and "topsecret" not in str(raised.value)


# -- Damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "subtype"), [*FORMATS, ("CAF", "ALAC_16"), ("VOC", "PCM_16"), ("NIST", "PCM_16")])
def test_damaged_files_are_refused_or_read_and_nothing_else(format, subtype, monkeypatch):
    """In a thousandth of the tries the sizes in a header decide what a reader allocates, or where it seeks."""
    monkeypatch.setenv("PATH", "")
    content = encoded(noise(0.3, 16000, 2), 16000, format, subtype)
    rng = np.random.default_rng(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for trial in range(120):
        damaged = bytearray(content * (1 + trial % 2))
        if trial % 3 == 0:
            damaged = damaged[: rng.integers(1, len(damaged))]
        else:
            end = min(len(damaged), 120 if trial % 3 == 1 else 1 << 20)
            for place in rng.integers(0, end, 1 + trial % 4):
                damaged[place] = rng.choice([0, 127, 128, 255, rng.integers(256)])
        try:
            waveform = load_audio(bytes(damaged), incomplete=("error", "keep")[trial % 2])
        except ValueError as error:
            assert "audio: " in str(error) or "sampling_rate" in str(error)
        else:
            assert np.isfinite(waveform).all() and len(waveform) < 32000 * 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize(("format", "subtype"), FORMATS)
def test_a_whole_file_is_given_to_the_decoder_as_it_is(format, subtype):
    content = encoded(noise(1.0), 16000, format, subtype)
    layout = find_layout(io.BytesIO(content))
    assert layout.missing is None and layout.parts == [[(0, len(content))]]


# -- Whole files that look broken, and what stands around the sound ----------------------------------------------------

ID3 = b"ID3\4\0\0\0\0\2\0" + bytes(256)


@pytest.mark.parametrize("before", [bytes(100), ID3 + bytes(300), "cut"], ids=["zeros", "tag and zeros", "cut frame"])
def test_an_mp3_that_begins_behind_other_bytes_is_read_to_the_end(before, tmp_path):
    """Loud, then quiet, with a variable bit rate: a decoder's guess of the length ended it early."""
    sound = np.concatenate([noise(3, 44100), noise(9, 44100, seed=1) * 0.001])
    content = encoded(sound, 44100, "MP3", bitrate_mode="VARIABLE")
    content = content[mp3_frames(content)[0] :]  # without its Xing frame
    whole = load_audio(content)
    assert abs(len(whole) - 12 * 16000) < 1500
    content = content[60:] if before == "cut" else before + content
    (tmp_path / "a.mp3").write_bytes(content)
    for source in (tmp_path / "a.mp3", content):
        found = load_audio(source)
        assert abs(len(found) - len(whole)) <= 900  # a frame that is cut, and one that needs it
        assert likeness(found, soxr.resample(sound[:88200], 44100, 16000)) > 0.95


@pytest.mark.parametrize("behind", [b"TAG" + bytes(125), b"behind the file \n" * 3, bytes(3000)])
@pytest.mark.parametrize("reader", ["ffmpeg", "torchcodec"])
@pytest.mark.parametrize(
    "options",
    ["-f webm -c:a libopus", "-f webm -live 1 -c:a libopus", "-f asf -c:a wmav2", "-f wv", "-f mp4 -c:a aac"],
)
def test_other_bytes_behind_a_coded_file_do_not_make_it_broken(
    options, reader, behind, tmp_path, request, monkeypatch
):
    decoders = request.getfixturevalue("torchcodec") if reader == "torchcodec" else None
    request.getfixturevalue("real_ffmpeg")
    sound = noise(2.0)
    soundfile.write(tmp_path / "in.wav", sound, 16000)
    command = ["ffmpeg", "-loglevel", "error", "-i", "in.wav", *options.split(), "a"]
    subprocess.run(command, cwd=tmp_path, check=True)
    if reader == "torchcodec":
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
        monkeypatch.setenv("PATH", "")
    content = (tmp_path / "a").read_bytes()
    found = load_audio(content + behind)
    assert abs(len(found) - 32000) < 1700 and likeness(found, sound) > 0.95
    np.testing.assert_array_equal(found, load_audio(content))


def test_a_live_wma_is_whole(tmp_path, real_ffmpeg):
    """Written to a pipe, its header does not state how many packets follow."""
    sound = noise(2.0)
    soundfile.write(tmp_path / "in.wav", sound, 16000)
    command = [real_ffmpeg, "-loglevel", "error", "-i", "in.wav", "-f", "asf", "-c:a", "wmav2", "pipe:1"]
    content = subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.PIPE).stdout
    found = load_audio(content)
    assert abs(len(found) - 32000) < 1700 and likeness(found, sound) > 0.95


def test_a_caf_of_alac_is_whole_or_breaks_off(tmp_path, real_ffmpeg):
    """Its table of packets stands behind the samples, and is no samples that the header leaves out."""
    sound = noise(2.0)
    soundfile.write(tmp_path / "in.wav", sound, 16000)
    subprocess.run(
        [real_ffmpeg, "-loglevel", "error", "-i", "in.wav", "-c:a", "alac", "a.caf"], cwd=tmp_path, check=True
    )
    content = (tmp_path / "a.caf").read_bytes()
    found = load_audio(content)
    np.testing.assert_allclose(found[:31000], load_audio(tmp_path / "in.wav")[:31000], atol=1e-6)
    for length in (len(content) // 2, len(content) - 4):
        with pytest.raises(ValueError, match="breaks off"):
            load_audio(content[:length])


def test_chunks_behind_the_samples_of_a_caf_are_no_samples():
    sound = noise(0.5)
    content = encoded(sound, format="CAF", subtype="FLOAT")
    for name in (b"info", b"uuid", b"free"):
        found = load_audio(content + name + struct.pack(">Q", 64) + b"\x41" * 64)
        np.testing.assert_array_equal(found, sound)


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "GSM610", "ULAW", "PCM_24", "FLOAT"])
def test_the_seconds_of_an_aiff_that_breaks_off(subtype):
    content = encoded(noise(2.0), format="AIFF", subtype=subtype)
    with pytest.raises(ValueError, match=r"breaks off after \d") as error:
        load_audio(content[: len(content) // 2])
    seconds = float(str(error.value).split("after ")[1].split()[0])
    assert abs(seconds - 1.0) < 0.1


def test_a_size_that_no_file_system_takes_is_refused(tmp_path):
    content = bytearray(encoded(noise(0.5), format="W64"))
    place = content.find(b"data")
    content[place : place + 4] = b"junk"
    content[place + 16 : place + 24] = struct.pack("<Q", 1 << 61)
    (tmp_path / "a.w64").write_bytes(content)
    with pytest.raises(ValueError, match="audio: "):
        load_audio(tmp_path / "a.w64")


@pytest.mark.parametrize("options", ["-f mpegts -c:a mp2", "-f vob -c:a ac3"])
def test_torchcodec_reads_the_last_frame_of_mpeg_streams(options, tmp_path, torchcodec, real_ffmpeg, monkeypatch):
    """Their length is counted to the last frame's beginning."""
    soundfile.write(tmp_path / "in.wav", noise(2.0, 48000), 48000)
    subprocess.run(
        [real_ffmpeg, "-loglevel", "error", "-i", "in.wav", *options.split(), "a"], cwd=tmp_path, check=True
    )
    expected = load_audio(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", torchcodec)
    monkeypatch.setenv("PATH", "")
    assert abs(len(load_audio(tmp_path / "a")) - len(expected)) <= 2


@pytest.mark.parametrize("reader", ["libsndfile", "ffmpeg", "torchcodec"])
def test_a_name_that_is_no_text_is_read(reader, tmp_path, request, monkeypatch):
    decoders = request.getfixturevalue("torchcodec") if reader == "torchcodec" else None
    request.getfixturevalue("real_ffmpeg")
    sound = noise(1.0)
    soundfile.write(tmp_path / "in.wav", sound, 16000, subtype="FLOAT")
    path, options = tmp_path / "in.wav", ["-c:a", "alac", "a.m4a"]
    if reader != "libsndfile":
        subprocess.run(["ffmpeg", "-loglevel", "error", "-i", "in.wav", *options], cwd=tmp_path, check=True)
        path = tmp_path / "a.m4a"
    if reader == "torchcodec":
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
        monkeypatch.setenv("PATH", "")
    odd = os.fsdecode(os.fsencode(path.with_suffix("")) + b"\xe9\n" + os.fsencode(path.suffix))
    shutil.copy(path, odd)
    np.testing.assert_array_equal(load_audio(odd), load_audio(path))


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("m4a", "-c:a aac"),
        ("mp4", "-c:a aac -movflags frag_keyframe+empty_moov"),
        ("wma", "-c:a wmav2"),
        ("wv", ""),
        ("caf", "-c:a alac"),
        ("webm", "-c:a libopus"),
        ("aac", "-c:a aac"),
    ],
)
def test_joined_coded_files_are_read_to_the_end(suffix, options, tmp_path, real_ffmpeg):
    contents, expected = [], []
    for number, seconds in enumerate((2.0, 1.5)):
        soundfile.write(tmp_path / "in.wav", noise(seconds, seed=number), 16000)
        command = [real_ffmpeg, "-loglevel", "error", "-y", "-i", "in.wav", *options.split(), f"a.{suffix}"]
        subprocess.run(command, cwd=tmp_path, check=True)
        contents.append((tmp_path / f"a.{suffix}").read_bytes())
        expected.append(load_audio(contents[-1]))
    found = load_audio(b"".join(contents))
    assert abs(len(found) - sum(map(len, expected))) < 1600
    assert likeness(found[-len(expected[1]) :], noise(1.5, seed=1)) > 0.9
    if suffix not in ("aac", "webm"):
        np.testing.assert_array_equal(found, np.concatenate(expected))
        with pytest.raises(ValueError, match="breaks off"):
            load_audio(contents[0] + contents[1][: len(contents[1]) // 2])
