"""Finds clips to train on that hold a recording which is validated on, by content.

    python examples/sam_tiny/duplicates.py --data ../shared/data [--fold 3] --output duplicates.json

compares every clip whose weights may be shared with every clip of one of ESC-50's folds (default: 3 and 4), whatever
their names, hashes and sources say: the loudest part of one is looked for anywhere in the other. First in coarse
log-mel (normalised cross-correlation over all lags), then, for the pairs most alike there, in the whitened waveforms.
Of all clips against folds 3 and 4 (five minutes a fold on two cores) two pairs reach 0.5, with 0.81 and 0.70: copies,
cut and coded otherwise. `duplicates.txt` lists the clips to train on among them.
"""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without installing it
from audio_sam import SAMPLING_RATE, fbank, load_audio
from sam_lab.common.files import write_json

BANDS, HOP = 16, 320  # of the coarse log-mel; 20 ms
GLANCE, WINDOW = 6400, SAMPLING_RATE  # samples that are looked for, in the log-mel and in the waveform
LONGEST = 10 * SAMPLING_RATE
FINE = 0.5  # correlation of the waveforms from which on a pair is a duplicate


def coarse_mel(waveform: torch.Tensor) -> torch.Tensor:
    """Log-mel of 16 bands every 20 ms, `[16, frames]`, of a waveform."""
    return fbank(waveform.unfold(0, 400, HOP).contiguous(), BANDS).clamp(min=-12).T


def loudest(waveform: torch.Tensor, count: int) -> torch.Tensor:
    """The part of so many samples with the highest energy, filled with zeros if the waveform is shorter."""
    waveform = F.pad(waveform, (0, max(0, count - len(waveform))))
    energy = F.pad(waveform.double().square().cumsum(0), (1, 0))
    start = int((energy[count:] - energy[:-count]).argmax())
    return waveform[start : start + count]


def coarse_correlations(sounds: list[torch.Tensor], references: list[torch.Tensor]) -> torch.Tensor:
    """The highest correlation of each reference's loudest 0.4 s with any 0.4 s of each sound, `[sounds, references]`.

    It is Pearson's, of the log-mel over 16 bands with each band's mean removed: loudness and colour do not matter.
    """
    filters = torch.stack([coarse_mel(loudest(reference, GLANCE)) for reference in references])  # [R, 16, w]
    filters = filters - filters.mean(dim=2, keepdim=True)
    filters = filters / filters.flatten(1).norm(dim=1).clamp(min=1e-3)[:, None, None]
    width, results = filters.shape[2], []
    for sound in sounds:
        mel = coarse_mel(F.pad(sound, (GLANCE // 2, GLANCE // 2 + max(0, GLANCE - len(sound)))))
        sums = F.pad(torch.stack([mel, mel.square()]).double().cumsum(2), (1, 0))
        total, squares = sums[..., width:] - sums[..., :-width]
        spread = (squares - total.square() / width).clamp(min=0).sum(0).sqrt().clamp(min=1.0)
        found = F.conv1d(mel.unsqueeze(0), filters)[0] / spread.float()  # [R, lags]
        results.append(found.amax(dim=1))
    return torch.stack(results)


def whitened(waveform: torch.Tensor) -> torch.Tensor:
    """The waveform with a flat spectrum and a flat level: divided by its own spectrum, smoothed over 100 Hz, between
    100 Hz and 6 kHz, and then by its level over 25 ms, down to 20 dB under the highest: a single click looks like any
    other, the second around it does not."""
    num_fft = 1 << (len(waveform) - 1).bit_length()
    spectrum = torch.fft.rfft(waveform, num_fft)
    width = 2 * round(50 * num_fft / SAMPLING_RATE) + 1
    smooth = F.avg_pool1d(spectrum.abs()[None, None], width, 1, width // 2)[0, 0]
    hertz = torch.linspace(0, SAMPLING_RATE / 2, len(spectrum))
    inside = (hertz > 100) & (hertz < 6000)
    flat = torch.fft.irfft(spectrum / (smooth + 1e-6 * smooth.max() + 1e-12) * inside, num_fft)[: len(waveform)]
    power = F.avg_pool1d(flat.square()[None, None], 401, 1, 200)[0, 0]
    return flat / (power + 0.01 * power.max() + 1e-20).sqrt()


class Whitened:
    """A whitened clip, and its loudest second, for [`fine_correlation`]."""

    def __init__(self, waveform: torch.Tensor):
        self.whole = whitened(F.pad(waveform, (WINDOW, WINDOW))).double()
        self.part = whitened(F.pad(loudest(waveform, WINDOW), (0, WINDOW)))[:WINDOW].double()
        self.num_fft = 1 << (len(self.whole) - 1).bit_length()
        self.spectrum = torch.fft.rfft(self.whole, self.num_fft)
        energy = F.pad(self.whole.square().cumsum(0), (1, 0))
        norm = (energy[WINDOW:] - energy[:-WINDOW]).clamp(min=0).sqrt()
        self.norm = norm.clamp(min=0.03 * float(norm.max()) + 1e-12)  # the quietest places have none to divide by


def fine_correlation(sound: Whitened, reference: Whitened) -> float:
    """The highest normalised cross-correlation of the reference's loudest second with the sound, both whitened."""
    product = sound.spectrum * torch.fft.rfft(reference.part, sound.num_fft).conj()
    correlation = torch.fft.irfft(product, sound.num_fft)[: len(sound.norm)]
    return float((correlation.abs() / sound.norm).max() / (reference.part.norm() + 1e-12))


def find(
    sounds: dict[str, np.ndarray], references: dict[str, np.ndarray], fine: float = FINE, most: int = 8
) -> list[dict]:
    """Pairs of a sound and a reference that hold the same recording.

    Args:
        sounds, references (`dict` of `str` to `np.ndarray`): Waveforms at 16 kHz by name; of longer ones the first
            ten seconds are compared.
        fine (`float`, *optional*, defaults to 0.5): Correlation of the waveforms from which on a pair is returned.
        most (`int`, *optional*, defaults to 8): Sounds that are looked at closer for each reference: those where its
            loudest part may be, and as many whose loudest part it may hold.

    Returns:
        `list[dict]`: `sound`, `reference` and `correlation`, the highest first.
    """
    names = list(sounds), list(references)
    waves = [[torch.from_numpy(each[:LONGEST]) for each in kind.values()] for kind in (sounds, references)]
    most = min(most, len(names[0]))
    there = coarse_correlations(*waves).topk(most, dim=0).indices.T.tolist()
    back = coarse_correlations(*reversed(waves)).topk(most, dim=1).indices.tolist()
    pairs, whitened_sounds = [], lru_cache(maxsize=300)(lambda row: Whitened(waves[0][row]))
    for column, rows in enumerate(zip(there, back)):
        reference = Whitened(waves[1][column])
        for row in sorted(set().union(*rows)):
            sound = whitened_sounds(row)
            correlation = max(fine_correlation(sound, reference), fine_correlation(reference, sound))
            if correlation >= fine:
                pair = {"sound": names[0][row], "reference": names[1][column], "correlation": round(correlation, 3)}
                pairs.append(pair)
    return sorted(pairs, key=lambda pair: -pair["correlation"])


def main() -> None:
    from make_sam_tiny import read_metadata

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with sounds/metadata.csv")
    parser.add_argument("--fold", type=int, action="append", help="of ESC-50; may be repeated (default: 3 and 4)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    rows = read_metadata(args.data)
    for fold in args.fold or (3, 4):
        held_out = [row for row in rows if row["official_fold"] == f"fold{fold}"]
        recordings = {row["recording"] for row in held_out}
        train = [row for row in rows if row["weights_ok"] == "yes" and row["split"] == "train"]
        train = [row for row in train if row["recording"] not in recordings]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            sounds, references = (
                dict(zip(files, pool.map(load_audio, [args.data / "sounds" / file for file in files])))
                for files in ([row["file"] for row in part] for part in (train, held_out))
            )
        pairs = find(sounds, references)
        print(f"fold {fold}: {len(pairs)} pairs of {len(sounds)} clips to train on and {len(references)} held out")
        for pair in pairs:
            print(f"{pair['correlation']:.3f} {pair['sound']} {pair['reference']}")
        if args.output is not None:
            write_json(pairs, args.output.with_stem(f"{args.output.stem}-fold{fold}"))


if __name__ == "__main__":
    main()
