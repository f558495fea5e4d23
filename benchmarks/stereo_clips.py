"""Makes 44.1-kHz stereo files of ten seconds, to measure `sam-alm caption` on.

    python benchmarks/stereo_clips.py path/to/ESC-50/audio stereo --count 60
    sam-alm caption stereo --model examples/sam-tiny --output captions

FLAC and WAV in turn. A clip is repeated to ten seconds, and its right channel is 20 samples behind the left.
"""

import argparse
from pathlib import Path

import numpy as np
import soundfile
import soxr

from audio_sam import load_audio
from sam_lab.data.clips import open_clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder of audio files")
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=60, help="files (default: %(default)s)")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    clips = [clip.audio for clip in open_clips(args.source).clips(0, 1)]
    for number in range(args.count):
        sound = np.resize(soxr.resample(load_audio(clips[number % len(clips)]), 16000, 44100, quality="HQ"), 441000)
        path = args.output / f"{number:06d}{('.flac', '.wav')[number % 2]}"
        soundfile.write(path, np.stack([sound, np.roll(sound, 20)], axis=1).clip(-1, 1), 44100)


if __name__ == "__main__":
    main()
