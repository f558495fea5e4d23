"""The evaluation tasks of the paper's tables, and their reader for published folders and LTU's evaluation files.

[`TASKS`] defines the prompt, the classes, the metric and the number of published clips of each. [`read_task`] returns
its clips with their ground truth, including those whose audio file does not exist.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sam_lab.common.json_files import read_json
from sam_lab.common.names import name_text
from sam_lab.common.prompts import AUDIOCAPS_PROMPT, CLOTHO_PROMPT, DEFAULT_PROMPT
from sam_lab.data.coverage import map_audio
from sam_lab.evaluation import labels
from sam_lab.evaluation.items import Item, existing_path
from sam_lab.evaluation.layouts import LAYOUTS, Row, audio_paths
from sam_lab.evaluation.mmau import read_mmau


@dataclass(frozen=True)
class Task:
    """An evaluation task: a benchmark's prompt, classes and metric.

    Args:
        name (`str`): Its key in [`TASKS`].
        title (`str`): Its name in text.
        prompt (`str`): The prompt for every clip, without the template; empty if each item has its own.
        labels (`tuple[str]`): The classes, in LTU's order, as the ground truth spells them (`"door_wood_knock"`);
            empty for captions and multiple choice.
        label_texts (`tuple[str]`): The text of each label that is embedded, cleaned as LTU does
            (`"door wood knock"`), without `"sound of "`.
        metric (`str`): `"accuracy"`, `"micro_f1"`, `"map"`, `"caption"`, `"mmau"` or `"questions"`.
        expected (`int`): Number of published clips (for MMAU: questions).
        heard_in_training (`bool`): Whether OpenAQA contains its training part, so that the score is not zero-shot.
        citation (`str`): Where it was published.
        paper_column (`str`, *optional*): Its column in the paper's Table 1.
    """

    name: str
    title: str
    prompt: str
    labels: tuple[str, ...]
    label_texts: tuple[str, ...]
    metric: str
    expected: int
    heard_in_training: bool
    citation: str
    paper_column: str | None


CITATIONS = {
    "esc50": "K. J. Piczak, ESC: Dataset for Environmental Sound Classification, ACM Multimedia 2015",
    "dcase2017": "A. Mesaros et al., DCASE 2017 Challenge Setup: Tasks, Datasets and Baseline System, DCASE 2017",
    "vocalsound": "Y. Gong et al., VocalSound: A Dataset for Improving Human Vocal Sounds Recognition, ICASSP 2022",
    "tut2017": "A. Mesaros et al., DCASE 2017 Challenge Setup: Tasks, Datasets and Baseline System, DCASE 2017",
    "beijing_opera": "M. Tian et al., Instrument-wise Onset Detection in Beijing Opera Percussion, ICASSP 2014",
    "vggsound": "H. Chen et al., VGGSound: A Large-scale Audio-visual Dataset, ICASSP 2020",
    "fsd50k": "E. Fonseca et al., FSD50K: An Open Dataset of Human-Labeled Sound Events, IEEE/ACM TASLP 30, 2022",
    "audioset": "J. F. Gemmeke et al., Audio Set: An Ontology and Human-labeled Dataset for Audio Events, ICASSP 2017",
    "audiocaps": "C. D. Kim et al., AudioCaps: Generating Captions for Audios in the Wild, NAACL 2019",
    "clotho": "K. Drossos et al., Clotho: An Audio Captioning Dataset, ICASSP 2020",
    "mmau": "S. Sakshi et al., MMAU: A Massive Multi-Task Audio Understanding and Reasoning Benchmark, ICLR 2025",
}


def _task(name, title, prompt, labels, metric, expected, heard_in_training, column):
    texts = [label.replace("_", " ").lower() for label in labels]
    if name == "dcase2017":  # LTU removes the commas here, but keeps those of VGGSound and AudioSet
        texts = [text.replace(",", "") for text in texts]
    citation = CITATIONS[name.removesuffix("_mini")]
    return Task(name, title, prompt, labels, tuple(texts), metric, expected, heard_in_training, citation, column)


# LTU does not state which sets it used. DCASE2017 is its evaluation set (1,103 clips; the testing set has 488),
# TUT2017 its development set (4,680; the evaluation set has 1,620). AudioCaps' test.csv has 975 clips, of which LTU
# and ReasonAQA found 957 on YouTube. Of VGGSound and AudioSet, too, fewer clips are available than were published.
TASKS = {
    task.name: task
    for task in (
        _task("esc50", "ESC-50", DEFAULT_PROMPT, labels.ESC50, "accuracy", 2000, False, "ESC"),
        _task("dcase2017", "DCASE2017 task 4", DEFAULT_PROMPT, labels.DCASE2017, "micro_f1", 1103, False, "DCASE"),
        _task("vocalsound", "VocalSound", DEFAULT_PROMPT, labels.VOCALSOUND, "accuracy", 3594, False, "VS"),
        _task("tut2017", "TUT2017", DEFAULT_PROMPT, labels.TUT2017, "accuracy", 4680, False, "TUT"),
        _task("beijing_opera", "Beijing Opera", DEFAULT_PROMPT, labels.BEIJING_OPERA, "accuracy", 236, False, "BJO"),
        _task("vggsound", "VGGSound", DEFAULT_PROMPT, labels.VGGSOUND, "accuracy", 15446, True, "VGG"),
        _task("fsd50k", "FSD50K", DEFAULT_PROMPT, labels.FSD50K, "map", 10231, True, "FSD"),
        _task("audioset", "AudioSet", DEFAULT_PROMPT, labels.AUDIOSET, "map", 20371, True, "AS"),
        _task("audiocaps", "AudioCaps", AUDIOCAPS_PROMPT, (), "caption", 975, True, "AC"),
        _task("clotho", "Clotho", CLOTHO_PROMPT, (), "caption", 1045, True, "CL"),
        _task("mmau_mini", "MMAU test-mini", "", (), "mmau", 1000, False, None),
        _task("mmau", "MMAU test", "", (), "mmau", 9000, False, None),
    )
}
MMAU_SPLITS = {"mmau_mini": "test-mini", "mmau": "test"}

# -- LTU's evaluation files ---------------------------------------------------------------------------------------

_PREFIX = re.compile(r'^[\s"]*(?:audio\s+)?captions?\s*:', re.IGNORECASE)


def _ltu_truths(task: Task, output: str) -> list[str]:
    """LTU's evaluation scripts cut at the last colon; here only a prefix is removed from a caption, which may contain
    a colon."""
    if task.labels:
        return [part for part in output.rsplit(":", 1)[-1].split(";") if part.strip()] or [output]
    return [_PREFIX.sub("", output).strip().strip('"').strip()]


def _ltu_rows(task: Task, file: Path, roots: Sequence[tuple[str, str]]) -> Iterator[Row]:
    records = []
    for number, record in read_json(file):
        for key in ("audio_id", "output"):
            if not isinstance(record.get(key), str) or not record[key].strip():
                raise ValueError(
                    f"{file}: record {number} has {record.get(key)!r} as {key}, expected text: LTU's evaluation files "
                    "are lists of objects with audio_id (a path) and output (the ground truth)."
                )
        records.append((number, record["audio_id"], record["output"]))
    names = Counter(path.rsplit("/", 1)[-1] for path in {path for _, path, _ in records})
    for number, path, output in records:
        name = path.rsplit("/", 1)[-1]
        mapped = map_audio(path, roots)
        found = existing_path(os.path.join(file.parent, path) if mapped == path else mapped)
        fold = re.match(r"([1-5])-\d+-[A-Z]-\d+\.", name) if task.name == "esc50" else None
        yield Row(
            name if names[name] == 1 else path,
            _ltu_truths(task, output),
            f"{file}: record {number}",
            path=found,
            groups={"fold": fold[1]} if fold else {},
        )


# -- Reading ------------------------------------------------------------------------------------------------------


def label_key(label: str) -> str:
    """What two spellings of a class share: LTU's files vary case, `_`, commas, spaces and soft hyphens."""
    return " ".join(re.sub("[_,]", " ", label.replace("\xad", "")).split()).strip(" .\"'").casefold()


def _references(task: Task, row: Row, spellings: dict[str, str]) -> list[str]:
    if not task.labels:
        wordless = next((caption for caption in row.truths if not re.search(r"\w", caption)), None)
        if wordless is not None:  # no metric can be computed against it
            raise ValueError(f"{row.where} has {wordless!r} for a caption, expected one with at least one word.")
        return list(row.truths)
    for label in row.truths:
        if label_key(label) not in spellings:
            raise ValueError(
                f"{row.where} has the label {label.strip()!r}, expected one of the {len(task.labels)} of "
                f"{task.title}, such as {task.labels[0]!r}; correct it, or read the published file."
            )
    return [spellings[label_key(label)] for label in row.truths]


def read_task(
    name: str, data: str | Path, fold: int | None = None, audio_roots: Sequence[tuple[str, str]] = ()
) -> list[Item]:
    """The clips or questions of a task with their ground truth.

    A folder is read in the layout that the benchmark is published in:

    - `esc50`: `meta/esc50.csv`, `audio/`.
    - `dcase2017`: `groundtruth_weak_label_evaluation_set.csv`, else the `strong` one, also in `groundtruth_release/`
      or `metadata/`; each line of a clip adds a label. Audio in `evaluation_set_formatted_audio_segments/`,
      `evaluation/`, `audio/` or beside the CSV file, names with or without the leading Y.
    - `vocalsound`: `datafiles/te.json`, `audio_16k/` or else `audio_44k/`; the class is part of a file's name.
    - `tut2017`: `meta.txt`, `audio/`.
    - `beijing_opera`: audio only; the instrument is part of a file's name, or of its folder's. A missing clip can only
      be noticed by the count.
    - `vggsound`: the lines of `vggsound.csv` with the split `test`. Audio in `audio/` or beside the CSV file, names of
      identifier, `_` and start in seconds (with six digits, or unpadded).
    - `fsd50k`: `FSD50K.ground_truth/eval.csv`, `FSD50K.eval_audio/`.
    - `audioset`: `eval_segments.csv`. Audio in `eval_segments/`, `eval/`, `audio/` or beside the CSV file, named by
      the identifier, with or without a Y before and the times after it (`_30.000_40.000`, `_30000` or `_30000_40000`).
    - `audiocaps`: `test.csv`. Audio in `test/`, `audio/` or beside the CSV file, named by the identifier, with or
      without a Y before and the start after it, or by a caption's `audiocap_id`.
    - `clotho`: `clotho_captions_evaluation.csv`, `evaluation/`.
    - `mmau_mini`, `mmau`: see [`read_mmau`].

    Audio is matched by its stem, in any format that [`load_audio`] reads. VGGSound, AudioSet and AudioCaps publish no
    audio: their file names above are those of common download scripts. The layouts of VocalSound, TUT2017 and Beijing
    Opera follow their documentation and code that reads them, not the files themselves.

    A file is read as one of LTU's evaluation files, a JSON list of `{"audio_id", "output", …}`. The ground truth is
    `output`, without `Audio caption:` or another prefix; semicolons separate labels. Several records of a clip become
    one item with several references. (LTU scores DCASE2017 and captions by record.) The file's instruction is ignored,
    as in LTU: every clip gets the task's prompt.

    Args:
        name (`str`): A key of [`TASKS`].
        data (`str` or `Path`): The folder, or the JSON file.
        fold (`int`, *optional*): A fold of ESC-50, 1 to 5; all by default.
        audio_roots (list of `(FROM, TO)`, *optional*): Local folders for the folders in a JSON file's paths, from
            [`parse_audio_roots`]; a relative path in none of them is relative to the file's folder.

    Returns:
        `list[Item]`: Every item of the split in the file's order; `audio` is `None` if the file does not exist. The
        count is not compared with [`Task`]'s `expected`.

    Raises:
        FileNotFoundError: The file or folder does not exist, or the folder has another layout.
        ValueError: An unknown name or fold; an unknown label or a malformed line, reported with file and line; two
            files for one clip; no clip at all.
    """
    if name not in TASKS:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(TASKS)}.")
    if fold is not None and name != "esc50":
        raise ValueError(f"fold: got {fold!r} for {name}, expected None: only esc50 has folds.")
    if name in MMAU_SPLITS:
        return read_mmau(data, MMAU_SPLITS[name], audio_roots=audio_roots)

    task, layout, data = TASKS[name], LAYOUTS[name], Path(data)
    expected = f"expected {task.title} as it is published ({layout.files}), or an evaluation file of LTU's."
    if not data.exists():
        raise FileNotFoundError(f"data: there is no {str(data)!r}, {expected}")
    files: dict[str, list[Path]] = {}
    if data.is_dir():
        try:
            rows = list(layout.rows(data))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}, {expected}") from None
        folder = next((data / part for part in layout.audio if (data / part).is_dir()), None)
        for path in audio_paths(folder) if folder else ():
            files.setdefault(name_text(path.stem), []).append(path)
    else:
        rows = list(_ltu_rows(task, data, audio_roots))
    if fold is not None:
        rows = [row for row in rows if row.groups.get("fold") == str(fold)]
    if not rows:
        raise ValueError(f"data: {str(data)!r} has no clips{'' if fold is None else f' of fold {fold}'}, {expected}")

    spellings = {label_key(label): label for label in task.labels}
    by_clip: dict[str, list[Row]] = {}
    for row in rows:
        by_clip.setdefault(row.id, []).append(row)
    items = []
    for clip, same in by_clip.items():
        references = [reference for row in same for reference in _references(task, row, spellings)]
        if task.labels:
            references = list(dict.fromkeys(references))  # a repeated caption counts twice
        audio = same[0].path or _find(clip, [stem for row in same for stem in row.stems], files)
        items.append(Item(clip, audio, task.prompt, tuple(references), groups=same[0].groups))
    return items


def _find(clip: str, stems: Sequence[str], files: dict[str, list[Path]]) -> str | None:
    found = next((files[stem] for stem in stems if stem in files), None)
    if found is None:
        return None
    if len(found) > 1:
        raise ValueError(f"data: {found[0]} and {found[1]} are both {clip!r}, expected one file; remove one.")
    return str(found[0])


def read_esc50(folder: str | Path, fold: int | None = None) -> tuple[list[tuple[Path, str]], list[str]]:
    """The clips of ESC-50 in their published layout, for training; see [`read_task`].

    Args:
        folder (`str` or `Path`): Contains `meta/esc50.csv` and `audio/`.
        fold (`int`, *optional*): One of the five folds; all of them by default.

    Returns:
        `tuple[list[tuple[Path, str]], list[str]]`: File and label of each existing clip, and the names of the missing
        ones.

    Raises:
        FileNotFoundError: `meta/esc50.csv` does not exist.
        ValueError: The fold has no clips, or none of their audio files exists.
    """
    items = read_task("esc50", folder, fold)
    clips = [(Path(item.audio), item.references[0]) for item in items if item.audio is not None]
    if not clips:
        raise ValueError(f"data: fold {fold} of {str(folder)!r} has {len(items)} rows and none of their audio.")
    return clips, [item.id for item in items if item.audio is None]
