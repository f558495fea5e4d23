"""The published files of the benchmarks: their ground truth, read line by line, and where their audio is stored.

There is one reader for each task. [`read_task`] documents what each reads and builds items from the rows.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sam_lab.common.names import name_text
from sam_lab.evaluation.items import AUDIO_AND_VIDEO_SUFFIXES, audio_stem
from sam_lab.evaluation.labels import AUDIOSET_NAMES

# Regular expressions that find the instrument in the names of the Beijing Opera recordings.
INSTRUMENTS = {
    "small gong": "xiaoluo|small gong",
    "Large gong": "daluo|large gong",
    "Clapper-drum": "bangu|clapper",
    "Cymbals": "naobo|cymbal",
}


@dataclass(frozen=True)
class Row:
    """A line of a ground-truth file. Lines with the same id are merged into one item.

    Args:
        id (`str`): The clip.
        truths (list of `str`): Its labels or captions, as written in the file.
        where (`str`): File and line, for error messages.
        stems (list of `str`, *optional*): Possible names of its audio file, without suffix, the likeliest first.
        path (`str`, *optional*): Its audio file, if known.
        groups (`dict[str, str]`, *optional*): As in [`Item`].
    """

    id: str
    truths: Sequence[str]
    where: str
    stems: Sequence[str] = ()
    path: str | None = None
    groups: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """How a benchmark is published.

    Args:
        rows (`Callable`): Reads the rows of a folder; raises `FileNotFoundError` if it has another layout.
        audio (`tuple[str]`): Folders that may hold the audio; the first that exists is used.
        files (`str`): The published files, for error messages.
    """

    rows: Callable[[Path], Iterator[Row]]
    audio: tuple[str, ...]
    files: str


def audio_paths(folder: Path) -> list[Path]:
    """All audio files in a folder and its subfolders."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_AND_VIDEO_SUFFIXES)


def _truth_file(folder: Path, *names: str) -> Path:
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"data: {str(folder)!r} has no {' and no '.join(names)}")
    return path


def _rows_with_header(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Position and row of each line of a CSV file with a header."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        for row in reader:
            where = f"{path}: line {reader.line_num}"
            absent = [name for name in columns if row.get(name) is None]
            if absent:
                raise ValueError(
                    f"{where} has no {', '.join(absent)}, expected the columns {', '.join(columns)}; download the "
                    "file again."
                )
            yield where, row


def _rows_without_header(path: Path, count: int, **options) -> Iterator[tuple[str, list[str]]]:
    """Position and row of each line of a CSV file without a header; lines that start with # are comments."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, **options)
        for row in reader:
            where = f"{path}: line {reader.line_num}"
            if row and not row[0].startswith("#"):
                if len(row) < count:
                    raise ValueError(f"{where} has {len(row)} columns, expected {count}; download the file again.")
                yield where, row


def _seconds(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where} has {text!r} as a time, expected seconds; download the file again.") from None


def _esc50(folder: Path) -> Iterator[Row]:
    for where, row in _rows_with_header(_truth_file(folder, "meta/esc50.csv"), ("filename", "fold", "category")):
        name = row["filename"]
        yield Row(name, [row["category"]], where, [audio_stem(name)], groups={"fold": row["fold"]})


def _dcase2017(folder: Path) -> Iterator[Row]:
    names = [f"groundtruth_{kind}_label_evaluation_set.csv" for kind in ("weak", "strong")]
    path = _truth_file(
        folder, *(inner + name for inner in ("", "groundtruth_release/", "metadata/") for name in names)
    )
    for where, (name, _, _, label, *_) in _rows_without_header(path, 4, delimiter="\t"):
        yield Row(name, [label], where, ["Y" + audio_stem(name), audio_stem(name)])


def _vocalsound(folder: Path) -> Iterator[Row]:
    path = _truth_file(folder, "datafiles/te.json")
    try:
        names = [entry["wav"].rsplit("/", 1)[-1] for entry in json.loads(path.read_text(encoding="utf-8"))["data"]]
    except (AttributeError, KeyError, TypeError, ValueError):
        form = '{"data": [{"wav": "…/f0003_0_cough.wav", …}, …]}'
        raise ValueError(f"{path}: is no list of VocalSound's, expected {form}; download the file again.") from None
    for number, name in enumerate(names, 1):
        kind = audio_stem(name).rsplit("_", 1)[-1]
        label = "Throat clearing" if kind == "throatclearing" else kind
        yield Row(name, [label], f"{path}: clip {number}", [audio_stem(name)])


def _tut2017(folder: Path) -> Iterator[Row]:
    for where, (name, scene, *_) in _rows_without_header(_truth_file(folder, "meta.txt"), 2, delimiter="\t"):
        yield Row(name.rsplit("/", 1)[-1], [scene], where, [audio_stem(name)])


def _beijing_opera(folder: Path) -> Iterator[Row]:
    rows = []
    for path in audio_paths(folder):
        name = name_text(path.relative_to(folder).as_posix())
        parts = [re.sub("[-_ ]+", " ", part).lower() for part in reversed(name.split("/"))]
        named = ([label for label, words in INSTRUMENTS.items() if re.search(words, part)] for part in parts)
        labels = next((labels for labels in named if labels), [])
        rows.append(Row(name, [" and ".join(labels)], str(path), path=str(path)))
    if not any(row.truths[0] for row in rows):
        raise FileNotFoundError(f"data: {str(folder)!r} has no audio file named after an instrument")
    yield from rows


def _vggsound(folder: Path) -> Iterator[Row]:
    for where, (video, start, label, split, *_) in _rows_without_header(_truth_file(folder, "vggsound.csv"), 4):
        if split == "test":
            second = int(_seconds(start, where))
            yield Row(f"{video}_{second:06d}", [label], where, [f"{video}_{second:06d}", f"{video}_{second}"])


def _fsd50k(folder: Path) -> Iterator[Row]:
    for where, row in _rows_with_header(_truth_file(folder, "FSD50K.ground_truth/eval.csv"), ("fname", "labels")):
        yield Row(row["fname"], row["labels"].split(","), where, [row["fname"]])


def _audioset(folder: Path) -> Iterator[Row]:
    path = _truth_file(folder, "eval_segments.csv")
    for where, (video, start, end, codes, *_) in _rows_without_header(path, 4, skipinitialspace=True):
        first, last = (round(_seconds(time, where) * 1000) for time in (start, end))
        times = ["", f"_{start}_{end}", f"_{first}", f"_{first}_{last}"]
        labels = [AUDIOSET_NAMES.get(code, code) for code in codes.split(",")]
        yield Row(video, labels, where, [y + video + time for time in times for y in ("", "Y")])


def _audiocaps(folder: Path) -> Iterator[Row]:
    columns = ("audiocap_id", "youtube_id", "start_time", "caption")
    for where, row in _rows_with_header(_truth_file(folder, "test.csv"), columns):
        video, start = row["youtube_id"], row["start_time"]
        stems = [video, f"Y{video}", f"{video}_{start}", f"Y{video}_{start}", row["audiocap_id"]]
        yield Row(video, [row["caption"]], where, stems)


def _clotho(folder: Path) -> Iterator[Row]:
    captions = [f"caption_{number}" for number in range(1, 6)]
    path = _truth_file(folder, "clotho_captions_evaluation.csv")
    for where, row in _rows_with_header(path, ("file_name", *captions)):
        yield Row(row["file_name"], [row[name] for name in captions], where, [audio_stem(row["file_name"])])


LAYOUTS = {
    "esc50": Layout(_esc50, ("audio",), "meta/esc50.csv and audio/"),
    "dcase2017": Layout(
        _dcase2017,
        ("evaluation_set_formatted_audio_segments", "evaluation", "audio", "."),
        "groundtruth_weak_label_evaluation_set.csv and evaluation_set_formatted_audio_segments/",
    ),
    "vocalsound": Layout(_vocalsound, ("audio_16k", "audio_44k"), "datafiles/te.json and audio_16k/"),
    "tut2017": Layout(_tut2017, ("audio",), "meta.txt and audio/, of the development or of the evaluation set"),
    "beijing_opera": Layout(_beijing_opera, (".",), "files or folders named after bangu, daluo, naobo and xiaoluo"),
    "vggsound": Layout(_vggsound, ("audio", "."), "vggsound.csv and audio named like B5KE79I2f-A_000220.wav"),
    "fsd50k": Layout(_fsd50k, ("FSD50K.eval_audio",), "FSD50K.ground_truth/eval.csv and FSD50K.eval_audio/"),
    "audioset": Layout(
        _audioset, ("eval_segments", "eval", "audio", "."), "eval_segments.csv and audio named by YouTube's identifier"
    ),
    "audiocaps": Layout(_audiocaps, ("test", "audio", "."), "test.csv and audio named by YouTube's identifier"),
    "clotho": Layout(_clotho, ("evaluation",), "clotho_captions_evaluation.csv and evaluation/"),
}
