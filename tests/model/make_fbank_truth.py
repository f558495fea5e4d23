"""Writes fbank_truth.npz: log-mel of a few signals by torchaudio's Kaldi filter bank, with EAT's arguments.

    python tests/model/make_fbank_truth.py [CLIP ...]

Run it once from the repository's root where torchaudio and soundfile import. The signals are synthetic ones, the clips
in examples/audio and those of the command line. Each is saved as int16 at 16 kHz, so that the test needs no decoder,
with every 16th frame of its log-mel, before padding and normalisation, as float32.
"""

import argparse
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio

RATE = 16000
EVERY = 16  # frames
LIMIT = 1_500_000  # bytes of the file
HERE = Path(__file__).resolve().parent


def synthetic_signals() -> dict[str, np.ndarray]:
    """Signals that are hard for a filter bank, in [-1, 1], 1.2 s each."""
    generator = np.random.default_rng(0)
    time = np.arange(int(1.2 * RATE)) / RATE
    noise = generator.standard_normal(len(time))
    impulses = np.zeros(len(time))
    impulses[::1000] = 0.9
    return {
        "noise": 0.1 * noise,
        "quiet_noise": 4e-5 * noise,
        "sine": 0.5 * np.sin(2 * np.pi * 440 * time),
        "chirp": 0.8 * np.sin(2 * np.pi * (20 * time + (7900 - 20) / (2 * time[-1]) * time**2)),
        "impulses": impulses,
        "offset": 0.5 + 0.01 * noise,
        "silence": np.zeros(len(time)),
    }


def read_clip(path: Path, seconds: float) -> np.ndarray:
    """The first seconds of a clip, mono, 16 kHz."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    waveform = torch.from_numpy(samples.mean(axis=1))
    return torchaudio.functional.resample(waveform, rate, RATE)[: int(seconds * RATE)].numpy()


def eat_fbank(waveform: torch.Tensor) -> torch.Tensor:
    """EAT's call: the whole clip's mean removed, then Kaldi's filter bank."""
    return torchaudio.compliance.kaldi.fbank(
        (waveform - waveform.mean()).unsqueeze(0),
        htk_compat=True,
        sample_frequency=RATE,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", type=Path, metavar="CLIP", help="further audio files")
    parser.add_argument("--seconds", type=float, default=2.0, help="how much of each clip to keep")
    parser.add_argument("--output", type=Path, default=HERE / "fbank_truth.npz")
    args = parser.parse_args()
    examples = HERE.parents[2] / "examples" / "audio"
    suffixes = {".wav", ".flac", ".ogg", ".opus", ".mp3"}
    clips = sorted(path for path in examples.glob("*") if path.suffix.lower() in suffixes) + args.clips
    signals = synthetic_signals() | {f"clip_{path.stem}": read_clip(path, args.seconds) for path in clips}
    data = {"versions": np.array(f"torch {torch.__version__}, torchaudio {torchaudio.__version__}")}
    for name, signal in signals.items():
        samples = np.clip(np.round(signal * 32768), -32768, 32767).astype(np.int16)
        log_mel = eat_fbank(torch.from_numpy(samples.astype(np.float32) / 32768.0)).numpy()
        data[f"{name}.samples"], data[f"{name}.frames"] = samples, log_mel[::EVERY]
        print(f"{name}: {len(samples)} samples, {len(log_mel)} frames, {log_mel.min():.3f} to {log_mel.max():.3f}")
    np.savez_compressed(args.output, **data)
    size = args.output.stat().st_size
    print(f"{args.output}: {len(signals)} signals, {size} bytes")
    if size > LIMIT:
        args.output.unlink()
        raise SystemExit(f"{size} bytes are more than {LIMIT}: give fewer clips or fewer --seconds.")


if __name__ == "__main__":
    main()
