"""Reading audio: every kind of source, rate and channel layout, damaged files, FFmpeg."""

import io
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import soundfile
import soxr
import torch
from shared import NO_TORCHCODEC
from tiny import tone

from audio_sam import load_audio

ROOT = Path(__file__).resolve().parents[2]


# Boxes as in MP4, without anything in them.
NO_AUDIO = b"\0\0\0\x20ftypM4A " + bytes(20) + b"\0\0\0\x08moov"


def wav(samples, rate=16000, format="WAV", subtype="FLOAT"):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def test_every_kind_of_source_gives_the_same_waveform(tmp_path):
    expected = tone()
    content = wav(expected)
    path = tmp_path / "tone.wav"
    path.write_bytes(content)
    decoder = SimpleNamespace(
        get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(expected)[None], sample_rate=16000)
    )
    with open(path, "rb") as file:
        sources = [
            str(path),
            path,
            content,
            bytearray(content),
            io.BytesIO(content),
            file,
            {"bytes": content, "path": None},
            {"bytes": None, "path": str(path)},
            {"bytes": content, "path": "gone.wav"},
            {"array": expected, "sampling_rate": 16000},
            {"array": expected.tolist(), "sampling_rate": 16000, "path": "gone.wav"},
            decoder,
        ]
        for source in sources:
            waveform = load_audio(source)
            assert waveform.dtype == np.float32 and waveform.flags.c_contiguous
            np.testing.assert_array_equal(waveform, expected)
    for array in (expected, expected.astype(np.float64), torch.from_numpy(expected), expected.tolist()):
        np.testing.assert_array_equal(load_audio(array, sampling_rate=16000), expected)
    half = load_audio(torch.from_numpy(expected).bfloat16(), sampling_rate=16000)
    np.testing.assert_allclose(half, expected, atol=2e-3)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_formats_of_libsndfile(format):
    subtype = {"WAV": "PCM_16", "FLAC": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}[format]
    waveform = load_audio(wav(tone(2.0, 44100), 44100, format, subtype))
    assert abs(len(waveform) - 32000) <= 600
    spectrum = np.abs(np.fft.rfft(waveform[8000:24000]))
    assert spectrum.argmax() == 440
    np.testing.assert_allclose(spectrum.max() / 8000, 0.3, atol=0.01)


def test_channels_are_averaged_on_either_axis():
    left, right = tone(frequency=440.0), tone(frequency=1000.0)
    expected = (left + right) / 2
    for samples in (
        np.stack([left, right]),
        np.stack([left, right], axis=1),
        torch.from_numpy(np.stack([left, right])),
    ):
        np.testing.assert_allclose(load_audio(samples, sampling_rate=16000), expected, atol=1e-7)
    np.testing.assert_allclose(load_audio(wav(np.stack([left, right], axis=1))), expected, atol=1e-7)


@pytest.mark.parametrize("rate", [1000, 8000, 11025, 44100, 48000, 192000, 768000])
def test_any_rate_is_resampled(rate):
    waveform = load_audio(tone(1.0, rate, 200.0), sampling_rate=rate)
    assert len(waveform) == 16000
    np.testing.assert_allclose(waveform[4000:12000], tone(1.0, 16000, 200.0)[4000:12000], atol=2e-3)


def test_integers_are_scaled():
    samples = np.array([-32768, -16384, 0, 16384] * 200, np.int16)
    expected = np.array([-1.0, -0.5, 0.0, 0.5] * 200, np.float32)
    np.testing.assert_array_equal(load_audio(samples, sampling_rate=16000), expected)
    np.testing.assert_array_equal(load_audio(samples.astype(np.int32) * 65536, sampling_rate=16000), expected)
    unsigned = ((samples.astype(np.int32) + 32768) // 256).astype(np.uint8)
    np.testing.assert_array_equal(load_audio(unsigned, sampling_rate=16000), expected)


@pytest.mark.parametrize(
    ("source", "rate", "message"),
    [
        (tone(), None, "sampling_rate: got None"),
        ({"array": tone()}, None, "sampling_rate: got None"),
        (tone(), 0, "sampling_rate: got 0"),
        (tone(), 16000.5, "sampling_rate: got 16000.5"),
        (tone(), True, "sampling_rate: got True"),
        (tone(), "16000", "sampling_rate: got '16000'"),
        (tone(), 999, "expected an integer from 1000 to 768000"),
        (tone(), 768001, "expected an integer from 1000 to 768000"),
        (np.zeros(0, np.float32), 16000, "empty"),
        (b"", None, "empty"),
        (io.BytesIO(b""), None, "empty"),
        ({"bytes": None, "path": None}, None, "'bytes' or 'path'"),
        (np.zeros(399, np.float32), 16000, r"399 samples at 16000 Hz, expected at least 400 \(25 ms\)"),
        (np.zeros(1100, np.float32), 48000, "expected at least 400"),
        (np.array([np.nan] * 500), 16000, "not finite"),
        (np.array([1e300] * 500), 16000, "not finite"),
        (tone() * 32768, 16000, r"expected about \[-1, 1\]; divide"),
        (np.zeros((2, 2, 800)), 16000, r"shape \(2, 2, 800\)"),
        (np.zeros((800, 800)), 16000, r"shape \(800, 800\)"),
        (np.zeros((64, 800)), 16000, "at most 32 channels"),
        (np.float32(1.0), 16000, "expected a path"),
        (np.array(0.5), 16000, r"shape \(\)"),
        (np.zeros(800, np.int64), 16000, "int64"),
        (np.zeros(800, complex), 16000, "complex128"),
        (["a"] * 800, 16000, "type <U1"),
        ([[0.1, 0.2], [0.3]], 16000, "rectangular"),
        (b"these bytes are text, not sound", None, "no known kind of audio file"),
        (
            wav(tone())[:20],
            None,
            "breaks off after 0.00 s, as nothing of it can be decoded: its header is not complete",
        ),
        (wav(tone())[:9], None, "cannot be decoded"),
        ("https://example.org/a.wav", None, r"got the URL .* download it first"),
        ("hf://datasets/a/b.wav", None, r"got the URL .* download it first"),
        ("zip://a.wav::https://example.org/b.zip", None, r"got the URL .* download it first"),
        ("file:///etc/hostname", None, r"got the URL .* pass the file's path"),
        ("FILE:/etc/hostname", None, r"got the URL .* pass the file's path"),
        ("data:audio/wav;base64,AAAA", None, "a data: URL of 26 characters is no known kind of audio file"),
        ("data:audio/wav;base64,A*AA", None, r"base64 of the URL 'data:audio/wav;base64' cannot be decoded"),
        ("data:audio/wav,AAAA", None, r"expected 'data:audio/...;base64'"),
        ("data:text/plain;base64,AAAA", None, r"expected 'data:audio/...;base64'"),
        ({"bytes": None, "path": "https://example.org/a.wav"}, None, r"got the URL .* download it first"),
        (str(ROOT), None, "is not a file"),
        (io.StringIO("text"), None, "binary mode"),
    ],
)
def test_bad_sources_are_refused(source, rate, message, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises((ValueError, TypeError), match=message):
        load_audio(source, rate)


def test_missing_file_and_unknown_source(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.wav"):
        load_audio(tmp_path / "gone.wav")
    with pytest.raises(TypeError, match="an object of type int"):
        load_audio(3, 16000)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG"])
def test_damaged_files_give_a_clean_error_or_sound(format, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    subtype = {"WAV": "PCM_16", "FLAC": "PCM_16", "OGG": "VORBIS"}[format]
    content = wav(tone(0.5), 16000, format, subtype)
    generator = np.random.default_rng(0)
    outcomes = Counter()
    for trial in range(150):
        damaged = bytearray(content)
        if trial % 3 == 0:
            damaged = damaged[: generator.integers(1, len(content))]
        for position in generator.integers(0, min(80, len(damaged)), size=1 + trial % 4):
            damaged[position] = generator.integers(256)
        source = bytes(damaged)
        if trial % 10 == 0:
            source = tmp_path / f"{trial}.{format.lower()}"
            source.write_bytes(damaged)
        try:
            waveform = load_audio(source)
            assert waveform.ndim == 1 and len(waveform) >= 400 and np.isfinite(waveform).all()
            outcomes["sound"] += 1
        except ValueError as error:
            assert "audio" in str(error) or "sampling_rate" in str(error)
            outcomes["error"] += 1
    # Ogg's checksums catch nearly all of it.
    assert outcomes["error"] > 10 and outcomes["sound"] > (0 if format == "OGG" else 10), outcomes


def test_a_headers_length_is_not_believed():
    content = bytearray(wav(tone(0.5), format="FLAC", subtype="PCM_16"))
    content[21] |= 0x0F  # the upper bits of FLAC's 36-bit number of samples: 64 billion of them
    content[22:26] = b"\xff\xff\xff\xff"
    try:
        waveform = load_audio(bytes(content))
    except ValueError:
        return
    assert len(waveform) <= 8000


def fake_ffmpeg(folder, body):
    folder.mkdir()
    script = folder / "ffmpeg"
    script.write_text(f"#!{sys.executable}\nimport sys\narguments = sys.argv[1:]\n{body}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(folder)


def test_ffmpeg_reads_what_libsndfile_cannot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)  # as if not installed
    content = NO_AUDIO + wav(np.stack([tone(1.0, 44100)] * 2, axis=1), 44100)
    body = (
        "source = arguments[arguments.index('-i') + 1]\n"
        "assert source.startswith('file:/') and '-nostdin' in arguments\n"
        "assert arguments[arguments.index('-protocol_whitelist') + 1] == 'file'\n"
        "assert 'hls' not in arguments[arguments.index('-format_whitelist') + 1]\n"
        "content = open(source[5:], 'rb').read()[40:]\n"
        "import io, numpy, soundfile, struct\n"
        "samples, rate = soundfile.read(io.BytesIO(content), dtype='float32', always_2d=True)\n"
        "header = struct.pack('>4s5I', b'.snd', 24, 0xFFFFFFFF, 6, rate, samples.shape[1])\n"
        "assert arguments[arguments.index('-f') + 1] == 'au' and 'pcm_f32be' in arguments\n"
        "assert arguments[-1] == 'pipe:1'\n"
        "sys.stdout.buffer.write(header + samples.astype('>f4').tobytes())"
    )
    monkeypatch.setenv("PATH", fake_ffmpeg(tmp_path / "bin", body))
    path = tmp_path / "-i; touch x.m4a"
    path.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    for source in (content, path, path.name):
        waveform = load_audio(source)
        assert len(waveform) == 16000
        np.testing.assert_allclose(waveform[1000:15000], tone()[1000:15000], atol=1e-3)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["-i; touch x.m4a", "bin"]


def test_a_failing_or_missing_ffmpeg_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    content = NO_AUDIO
    monkeypatch.setenv(
        "PATH", fake_ffmpeg(tmp_path / "bin", "sys.stderr.write('x\\nmoov atom not found\\n'); exit(1)")
    )
    with pytest.raises(ValueError, match=r"libsndfile.*torchcodec.*ffmpeg: moov atom not found"):
        load_audio(content)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"ffmpeg: not on the PATH.*install torchcodec or put ffmpeg on the PATH"):
        load_audio(content)
    # A playlist names other files or addresses; neither is opened.
    monkeypatch.setenv("PATH", fake_ffmpeg(tmp_path / "bin2", "open('reached', 'w')"))
    monkeypatch.chdir(tmp_path)
    for playlist in (
        b"#EXTM3U\n#EXTINF:10,\nfile:///etc/hostname\n",
        b"ffconcat version 1.0\nfile 'a.wav'\n",
        b"v=0\n",
    ):
        with pytest.raises(ValueError, match="no known kind of audio file"):
            load_audio(playlist)
    assert not (tmp_path / "reached").exists()


def test_torchcodec_comes_before_ffmpeg(monkeypatch):
    class AudioDecoder:
        def __init__(self, source):
            assert isinstance(source, bytes)

        def get_all_samples(self):
            return SimpleNamespace(data=torch.from_numpy(np.stack([tone(1.0, 48000)] * 2)), sample_rate=48000)

    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace(decoders=None))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(AudioDecoder=AudioDecoder))
    waveform = load_audio(NO_AUDIO)
    np.testing.assert_allclose(waveform[1000:15000], tone()[1000:15000], atol=1e-3)


@pytest.mark.parametrize(
    "name, rate, channels, options",
    [
        ("out.m4a", 44100, 2, ["-c:a", "aac"]),
        ("out.m4a", 8000, 1, ["-c:a", "aac"]),
        ("out.mp4", 22050, 2, ["-f", "lavfi", "-i", "color=size=64x64:rate=5", "-shortest", "-c:a", "aac"]),
        ("out.aac", 48000, 2, ["-c:a", "aac"]),
        ("out.m4a", 96000, 6, ["-c:a", "alac"]),
        ("out.m4a", 96000, 1, ["-c:a", "aac"]),
        ("out.m4a", 48000, 6, ["-c:a", "aac"]),
        ("out.m4a", 44100, 1, ["-c:a", "alac"]),
        ("out.webm", 48000, 2, ["-c:a", "libopus"]),
        ("out.mka", 8000, 1, ["-c:a", "aac"]),
        ("out.wma", 44100, 2, ["-c:a", "wmav2"]),
        ("out.ac3", 48000, 2, ["-c:a", "ac3"]),
    ],
)
def test_real_ffmpeg(tmp_path, real_ffmpeg, name, rate, channels, options):
    """The samples themselves, by correlation with what was encoded: noise can have the right peak frequency."""
    noise = np.random.default_rng(0).normal(size=2 * rate)
    clip = np.convolve(noise, np.ones(24) / 24, mode="same")  # low frequencies, which no codec drops
    clip = 0.3 * clip / np.abs(clip).max()
    soundfile.write(tmp_path / "in.wav", np.stack([clip] * channels, axis=1), rate, subtype="FLOAT")
    command = [real_ffmpeg, "-loglevel", "error", "-i", "in.wav", *options, "-map", "0:a", "-b:a", "256k", name]
    if "lavfi" in options:
        command[-3:-3] = ["-map", "1:v"]
    subprocess.run(command, cwd=tmp_path, check=True)
    part = soxr.resample(clip, rate, 16000)[4000:28000]
    for source in (tmp_path / name, (tmp_path / name).read_bytes()):
        waveform = load_audio(source)
        assert abs(len(waveform) - 32000) < 3000  # and pad
        begin = np.correlate(waveform, part, "valid").argmax()  # codecs delay
        assert np.corrcoef(waveform[begin : begin + len(part)], part)[0, 1] > 0.95


def test_real_torchcodec_decoder(tmp_path):
    decoders = pytest.importorskip("torchcodec.decoders", reason=NO_TORCHCODEC, exc_type=Exception)
    soundfile.write(tmp_path / "in.wav", np.stack([tone(), tone()], axis=1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(decoders.AudioDecoder(str(tmp_path / "in.wav"))), tone(), atol=1e-4)


def test_undecoded_datasets_column(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(), 16000)
    data = datasets.Dataset.from_dict({"audio": [str(path)]}).cast_column("audio", datasets.Audio(decode=False))
    np.testing.assert_allclose(load_audio(data[0]["audio"]), tone(), atol=1e-4)
    stored = datasets.Dataset.from_list([{"audio": {"bytes": path.read_bytes(), "path": None}}])
    np.testing.assert_allclose(load_audio(stored[0]["audio"]), tone(), atol=1e-4)
