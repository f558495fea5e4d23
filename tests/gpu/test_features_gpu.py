"""Log-mel on the GPU, and against torchaudio where it is installed (it has no build for every machine of CI)."""

import os
from pathlib import Path

import pytest
import torch

from processing_sam import SamFeatureExtractor, load_audio

EXAMPLES = Path(__file__).parents[2] / "examples" / "audio"
# more clips to compare: a folder named by the environment
FOLDERS = [EXAMPLES, *map(Path, filter(None, [os.environ.get("SAM_TEST_CLIPS")]))]
CLIPS = sorted(p for folder in FOLDERS for p in folder.rglob("*") if p.suffix in {".wav", ".ogg", ".flac"})


def log_mel(features):
    """Undoes the normalisation."""
    return features * (2 * 4.569) - 4.268


def test_gpu_equals_cpu():
    extractor = SamFeatureExtractor()
    waveforms = [load_audio(path)[:163840] for path in CLIPS[:8]]
    cpu = extractor(waveforms, sampling_rate=16000, return_tensors="pt")["input_features"]
    gpu = extractor(waveforms, sampling_rate=16000, return_tensors="pt", device="cuda")["input_features"].cpu()
    assert (cpu - gpu).abs().max() < 2e-3


def test_equals_torchaudio_on_real_sound():
    torchaudio = pytest.importorskip("torchaudio")
    extractor, worst = SamFeatureExtractor(), 0.0
    for path in CLIPS:
        waveform = torch.as_tensor(load_audio(path))[:163840]
        truth = torchaudio.compliance.kaldi.fbank(
            (waveform - waveform.mean()).unsqueeze(0),
            htk_compat=True,
            sample_frequency=16000,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=128,
            dither=0.0,
            frame_shift=10,
        )
        features = extractor(waveform.numpy(), sampling_rate=16000, return_tensors="pt")["input_features"][0]
        difference = (log_mel(features)[: len(truth)] - truth).abs().max()
        worst = max(worst, float(difference))
        padding = features[len(truth) :]
        assert (padding - 0.46706).abs().max() < 1e-4 if len(padding) else True
    print(f"\nlog-mel against torchaudio on {len(CLIPS)} clips: at most {worst:.1e} before normalisation")
    assert worst < 1e-3
