"""The log-mel front end against Kaldi's definition, torchaudio's numbers and transformers' own extractor."""

import csv
import math
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from shared import SOUNDS, shared
from transformers import ASTFeatureExtractor, AutoFeatureExtractor

import audio_sam
import sam_alm  # noqa: F401 (registers the classes with AutoFeatureExtractor)
from audio_sam import SamFeatureExtractor, load_audio

ROOT = Path(__file__).resolve().parents[2]
TRUTH = Path(__file__).parent / "fbank_truth.npz"
MEAN, STD = -4.268, 4.569
FLOOR = math.log(1.1920928955078125e-07)


def log_mel(waveform, **kwargs):
    """Our log-mel before normalisation, without the filled frames of a clip of one window."""
    features = SamFeatureExtractor()(waveform, sampling_rate=16000, return_tensors="np", **kwargs)["input_features"]
    frames = min(1024, 1 + (len(waveform) - 400) // 160)
    return features[0, :frames].astype(np.float64) * 2 * STD + MEAN


def kaldi_float64(waveform):
    """Kaldi's filter bank from its definition: frame by frame, a plain Fourier sum, filter by filter, in float64."""
    waveform = np.asarray(waveform, np.float64)
    waveform = waveform - waveform.mean()
    n = np.arange(400)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / 399)
    fourier = np.exp(-2j * np.pi * np.outer(n, np.arange(257)) / 512)

    def mel(hertz):
        return 1127.0 * np.log(1.0 + hertz / 700.0)

    edges = np.linspace(mel(20.0), mel(8000.0), 130)
    rows = []
    for start in range(0, len(waveform) - 399, 160):
        frame = waveform[start : start + 400]
        frame = frame - frame.mean()
        previous = np.concatenate([frame[:1], frame[:-1]])
        power = np.abs((hann * (frame - 0.97 * previous)) @ fourier) ** 2
        row = []
        for left, center, right in zip(edges[:-2], edges[1:-1], edges[2:]):
            total = 0.0
            for k in range(1, 256):
                position = mel(k * 31.25)
                if left < position < right:
                    rising, falling = (position - left) / (center - left), (right - position) / (right - center)
                    total += power[k] * min(rising, falling)
            row.append(math.log(max(total, 1.1920928955078125e-07)))
        rows.append(row)
    return np.array(rows)


def assert_close(found, expected, atol, name=""):
    """Within `atol`, and the rounding of a float32 FFT: an error in each bin of epsilon times the frame's largest
    amplitude, which shows in the logarithm of a weak bin. How it falls depends on the processor."""
    expected = np.asarray(expected, np.float64)
    rounding = 1.1920928955078125e-07 * np.exp((expected.max(axis=1, keepdims=True) - expected) / 2)
    excess = np.abs(found - expected) - rounding
    assert excess.max() < atol, f"{name}: {excess.max()} at {np.unravel_index(excess.argmax(), excess.shape)}"


def real_clips(count):
    """Clips spread over the labels of the shared data."""
    with open(shared(SOUNDS) / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = rows[:: len(rows) // count][:count]
    paths = [SOUNDS / row["file"] for row in chosen]
    return paths if paths[0].exists() else [SOUNDS / "audio" / row["file"] for row in chosen]


@pytest.fixture
def noise():
    return np.random.default_rng(0).standard_normal(160000).astype(np.float32) * 0.1


def test_equals_kaldis_definition():
    generator = np.random.default_rng(1)
    seconds = np.arange(8000) / 16000
    tone = 0.3 * np.sin(2 * np.pi * 1000 * seconds)
    for waveform in (0.1 * generator.standard_normal(8000), tone + 0.02 * generator.standard_normal(8000) + 0.4):
        waveform = waveform.astype(np.float32)
        expected = kaldi_float64(waveform)
        assert expected.shape == (48, 128)
        assert_close(log_mel(waveform), expected, 5e-4)


def test_equals_transformers_ast_on_noise(noise):
    # With torchaudio its path is torchaudio's, without it transformers' own spectrogram in numpy.
    theirs = ASTFeatureExtractor(mean=MEAN, std=STD)(noise - noise.mean(), sampling_rate=16000, return_tensors="np")
    ours = SamFeatureExtractor()(noise, sampling_rate=16000, return_tensors="np")["input_features"]
    np.testing.assert_allclose(ours, theirs["input_values"], atol=1e-4)


def test_equals_transformers_ast_on_real_sound():
    extractor, reference = SamFeatureExtractor(), ASTFeatureExtractor(mean=MEAN, std=STD)
    worst = []
    for path in real_clips(12):
        waveform = load_audio(path)
        ours = extractor(waveform, sampling_rate=16000, return_tensors="np")["input_features"]
        theirs = reference(waveform - waveform.mean(), sampling_rate=16000, return_tensors="np")["input_values"]
        difference = np.abs(ours - theirs)
        # Far below the peak of a frame the rounding of float32 matters, which numpy's float64 does not have.
        loud = theirs > theirs.max(axis=-1, keepdims=True) - 14 / (2 * STD)
        assert difference[loud].max() < 3e-4, path
        worst.append(np.quantile(difference, 0.999))
    assert max(worst) < 2e-3


def test_equals_torchaudio():
    with np.load(TRUTH, allow_pickle=False) as truth:
        names = [name.removesuffix(".samples") for name in truth.files if name.endswith(".samples")]
        assert len(names) >= 7
        for name in names:
            waveform = truth[f"{name}.samples"].astype(np.float32) / 32768.0
            assert_close(log_mel(waveform)[::16], truth[f"{name}.frames"], 1e-3, name)


def test_frames_padding_and_floor(noise):
    extractor = SamFeatureExtractor()
    features = extractor(noise, sampling_rate=16000, return_tensors="np")["input_features"]
    assert features.shape == (1, 1024, 128) and features.dtype == np.float32
    assert extractor.num_frames(160000) == 998
    np.testing.assert_allclose(features[0, 998:], 0.46706, atol=1e-5)
    assert np.abs(features[0, 997] - 0.46706).min() > 1e-4
    silence = extractor(np.zeros(16000, np.float32), sampling_rate=16000, return_tensors="np")["input_features"]
    np.testing.assert_allclose(silence[0, :98], (FLOOR - MEAN) / (2 * STD), atol=1e-5)
    constant = extractor(np.full(16000, 0.5, np.float32), sampling_rate=16000, return_tensors="np")["input_features"]
    np.testing.assert_allclose(constant[0, :98], silence[0, :98], atol=1e-5)


def test_the_whole_clips_mean_is_removed():
    # Half at 0, half at 1: each frame's own mean removal hides all but the clip's mean, up to rounding; the sum is
    # compared with the same steps done by hand on the centred clip.
    waveform = np.concatenate([np.zeros(8000), np.ones(8000)]).astype(np.float32)
    waveform += 1e-3 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    centred = torch.from_numpy(waveform) - torch.from_numpy(waveform).mean()
    expected = audio_sam.fbank(centred.unfold(0, 400, 160), 128).numpy()
    np.testing.assert_allclose(log_mel(waveform), expected, atol=1e-5)
    # The clip is truncated later: the mean is that of the whole clip.
    long = np.concatenate([waveform, np.full(200000, 5.0, np.float32)])
    centred = torch.from_numpy(long) - torch.from_numpy(long).mean()
    expected = audio_sam.fbank(centred.unfold(0, 400, 160)[:1024], 128).numpy()
    np.testing.assert_allclose(log_mel(long, overflow="truncate"), expected, atol=1e-5)


def test_batch_equals_single(noise):
    extractor = SamFeatureExtractor()
    clips = [noise, noise[:400], noise[:72345], noise[::-1]]
    batch = extractor(clips, sampling_rate=16000, return_tensors="np")["input_features"]
    for clip, row in zip(clips, batch):
        single = extractor(clip, sampling_rate=16000, return_tensors="np")["input_features"][0]
        np.testing.assert_array_equal(row, single)
    stacked = extractor(np.stack([noise, -noise]), sampling_rate=16000, return_tensors="np")["input_features"]
    np.testing.assert_array_equal(stacked[0], batch[0])


def test_kinds_of_input_and_output(noise):
    extractor = SamFeatureExtractor()
    expected = extractor(noise, sampling_rate=16000, return_tensors="np")["input_features"]
    tensor = extractor(torch.from_numpy(noise), sampling_rate=16000, return_tensors="pt")["input_features"]
    assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), expected)
    listed = extractor(noise.tolist(), sampling_rate=16000)["input_features"]
    assert isinstance(listed, list)
    np.testing.assert_array_equal(listed[0], expected[0])
    integers = (noise * 32768).round().astype(np.int16)
    scaled = extractor(integers.astype(np.float32) / 32768, sampling_rate=16000, return_tensors="np")
    np.testing.assert_array_equal(
        extractor(integers, sampling_rate=16000, return_tensors="np")["input_features"], scaled["input_features"]
    )


def test_autocast_and_gradient_mode_change_nothing(noise):
    extractor = SamFeatureExtractor()
    expected = extractor(noise, sampling_rate=16000, return_tensors="pt")["input_features"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = extractor(noise, sampling_rate=16000, return_tensors="pt")["input_features"]
    assert features.dtype == torch.float32 and torch.equal(features, expected)
    # Not inference tensors: an encoder is trained on them.
    (features * torch.ones(1, requires_grad=True)).sum().backward()


def test_1024_frames_are_no_overflow():
    waveform = 0.1 * np.random.default_rng(0).standard_normal(164240).astype(np.float32)
    extractor = SamFeatureExtractor()
    for samples in (163840, 164080, 164239):
        assert extractor(waveform[:samples], sampling_rate=16000)["input_features"][0].shape == (1024, 128)
    with pytest.raises(ValueError, match=r"overflow.*1025 frames.*'truncate'.*'window'"):
        extractor(waveform, sampling_rate=16000)


def test_truncate_keeps_the_beginning_and_warns_once(monkeypatch):
    generator = np.random.default_rng(0)
    long = [0.1 * generator.standard_normal(n).astype(np.float32) for n in (200000, 16000, 300000)]
    messages = []
    monkeypatch.setattr(audio_sam.logger, "warning", messages.append)
    features = SamFeatureExtractor()(long, sampling_rate=16000, overflow="truncate", return_tensors="np")
    assert features["input_features"].shape == (3, 1024, 128) and "num_windows" not in features
    assert len(messages) == 1 and "2 of 3" in messages[0]
    expected = kaldi_float64(long[0][:8000] - long[0].mean())[:40]
    np.testing.assert_allclose(features["input_features"][0, :40] * 2 * STD + MEAN, expected, atol=1e-3)
    SamFeatureExtractor()(long[1], sampling_rate=16000, overflow="truncate")
    assert len(messages) == 1


def test_windows_lose_no_frame():
    generator = np.random.default_rng(0)
    extractor = SamFeatureExtractor()
    clips = [0.1 * generator.standard_normal(n).astype(np.float32) for n in (400000, 160000, 164240, 163840 * 2 + 399)]
    output = extractor(clips, sampling_rate=16000, overflow="window", return_tensors="np")
    assert output["num_windows"].tolist() == [3, 1, 2, 2]
    features = output["input_features"]
    assert features.shape == (8, 1024, 128)
    for k in range(3):  # each window equals a clip of its own
        part = clips[0][163840 * k : 163840 * k + 164080]
        alone = extractor(part, sampling_rate=16000, return_tensors="np")["input_features"][0]
        np.testing.assert_array_equal(features[k], alone)
    # All frames of the clip, in order: only the subtracted mean differs, and each frame subtracts its own.
    centred = torch.from_numpy(clips[0] - clips[0].mean())
    whole = audio_sam.fbank(centred.unfold(0, 400, 160), 128).numpy()
    joined = features[:3].reshape(-1, 128)[: len(whole)] * 2 * STD + MEAN
    assert len(whole) == 2498
    np.testing.assert_allclose(joined, whole, atol=1e-3)
    # A short clip is one window, exactly as without windows.
    short = extractor(clips[1], sampling_rate=16000, return_tensors="np")["input_features"][0]
    np.testing.assert_array_equal(features[3], short)
    listed = extractor(clips[1], sampling_rate=16000, overflow="window")
    assert listed["num_windows"] == [1]


@pytest.mark.parametrize(
    ("waveform", "rate", "message"),
    [
        (np.zeros(16000, np.float32), None, "sampling_rate: got None"),
        (np.zeros(16000, np.float32), 44100, "sampling_rate: got 44100, expected 16000"),
        (np.zeros(399, np.float32), 16000, "399 samples, expected at least 400"),
        (np.zeros(0, np.float32), 16000, "empty"),
        ([], 16000, "empty batch"),
        (np.full(16000, np.nan, np.float32), 16000, "not finite"),
        (torch.tensor([0.0] * 500 + [math.inf, -math.inf]), 16000, "not finite"),
        (np.zeros((2, 2, 16000), np.float32), 16000, "mono"),
        (np.zeros(16000, np.int64), 16000, "int64"),
        (np.zeros(16000, bool), 16000, "bool"),
    ],
)
def test_wrong_input(waveform, rate, message):
    with pytest.raises(ValueError, match=message):
        SamFeatureExtractor()(waveform, sampling_rate=rate)


def test_wrong_arguments(noise):
    with pytest.raises(ValueError, match="overflow: got 'cut'"):
        SamFeatureExtractor()(noise, sampling_rate=16000, overflow="cut")
    with pytest.raises(ValueError, match="return_tensors: got 'tf'"):
        SamFeatureExtractor()(noise, sampling_rate=16000, return_tensors="tf")
    with pytest.raises(TypeError, match="do_normalise"):
        SamFeatureExtractor()(noise, sampling_rate=16000, do_normalise=False)
    with pytest.raises(ValueError, match="expected 16000"):
        SamFeatureExtractor(sampling_rate=44100)


def test_other_sizes_save_and_load(tmp_path, noise):
    extractor = SamFeatureExtractor(feature_size=64, max_frames=128, mean=-6.627, std=5.359)
    extractor.save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is SamFeatureExtractor and loaded.to_dict() == extractor.to_dict()
    features = loaded(noise[:8000], sampling_rate=16000, return_tensors="np")["input_features"]
    assert features.shape == (1, 128, 64)
    np.testing.assert_allclose(features[0, 48:], 6.627 / (2 * 5.359), atol=1e-5)


@pytest.mark.timing
def test_speed(noise):
    """At least 150 ten-second clips a second on two idle cores; here one third."""
    extractor, clips = SamFeatureExtractor(), [noise] * 16
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = []
        for _ in range(5):
            start = time.perf_counter()
            extractor(clips, sampling_rate=16000, return_tensors="pt")
            rates.append(len(clips) / (time.perf_counter() - start))
    finally:
        torch.set_num_threads(threads)
    assert max(rates) > 50, rates


def test_real_clips_are_finite_and_in_range():
    extractor = SamFeatureExtractor()
    for path in real_clips(40):
        info = soundfile.info(str(path))
        waveform = load_audio(path)
        assert abs(len(waveform) - info.duration * 16000) <= 2
        features = extractor(waveform, sampling_rate=16000, overflow="truncate", return_tensors="np")["input_features"]
        assert np.isfinite(features).all() and -1.3 < features.min() and features.max() < 2
