"""The class names of the benchmarks, in the order of LTU's label files (`src/ltu/eval/labels` of its repository).

Each name is spelled as in the benchmark's own ground truth. LTU's files replace the commas of VGGSound by `_`, and
omit the commas of DCASE2017 and the underscores of TUT2017. Sources: the ground truth of ESC-50, DCASE2017 task 4,
VocalSound, TUT Acoustic Scenes 2017, VGGSound and FSD50K, LTU's English names of the four Beijing Opera instruments,
and AudioSet's `class_labels_indices.csv`. The names lie in `classes/`, one a line.
"""

from pathlib import Path


def read_lines(name: str) -> tuple[str, ...]:
    """The lines of `classes/NAME.txt`."""
    file = Path(__file__).parent / "classes" / f"{name}.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())


ESC50 = read_lines("esc50")
DCASE2017 = read_lines("dcase2017")
VOCALSOUND = read_lines("vocalsound")
TUT2017 = read_lines("tut2017")
BEIJING_OPERA = read_lines("beijing_opera")
VGGSOUND = read_lines("vggsound")
FSD50K = read_lines("fsd50k")
# Class identifier and display name: AudioSet's own segment files contain identifiers.
AUDIOSET_NAMES = dict(line.split(" ", 1) for line in read_lines("audioset"))
AUDIOSET = tuple(AUDIOSET_NAMES.values())
