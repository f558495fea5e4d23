"""What makes examples/sam-tiny, and the checkpoint."""

import csv
import json
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from shared import DATA, SOUNDS, needs
from tiny import script
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from configuration_sam import AUTO_MAP, SamConfig
from modeling_sam import SamForConditionalGeneration
from processing_sam import SamAudioLanguageProcessor
from sam_lab.common.prompts import DEFAULT_PROMPT

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
CLIPS = EXAMPLES / "audio"
SAM_TINY = EXAMPLES / "sam-tiny"
AUDIO = sorted(path for path in CLIPS.iterdir() if path.suffix in (".flac", ".ogg", ".wav"))

needs_sam_tiny = pytest.mark.skipif(
    not (SAM_TINY / "model.safetensors").exists(), reason="examples/sam-tiny is not here: it is not trained yet"
)

captions = script("examples/sam_tiny/captions.py")
recipe = script("examples/sam_tiny/make_sam_tiny.py")


# -- The recipe ---------------------------------------------------------------------------------------------------


TRAINED = {f"{name}/{name}_{number}.ogg" for name in ("cow", "dog", "rain") for number in ("one", "two")}
TRAINED |= {"frog/frog_one.ogg", "frog/frog_again.ogg"}


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """A small sound collection in the layout that the recipe reads."""
    data = tmp_path_factory.mktemp("data")
    excluded = "audio/dog/gcompris_b87930b34e.ogg"
    rows = [
        ("audio/dog/dog_one.ogg", "dog", "yes", "train", "ESC-50", "fold1", "dog.ogg"),
        ("audio/dog/dog_two.ogg", "dog", "yes", "train", "ESC-50", "fold3", "dog.ogg"),
        ("audio/cow/cow_one.ogg", "cow", "yes", "train", "sonic-pi-samples", "", "cow.ogg"),
        ("audio/cow/cow_two.ogg", "cow", "yes", "train", "ESC-50", "fold2", "cow.ogg"),
        ("audio/rain/rain_one.ogg", "rain", "yes", "train", "ESC-50", "fold3", "rain.ogg"),
        ("audio/rain/rain_two.ogg", "rain", "yes", "train", "ESC-50", "fold2", "rain.ogg"),
        ("audio/frog/frog_one.ogg", "frog", "yes", "train", "ESC-50", "fold1", "frogs.ogg"),
        ("audio/frog/frog_again.ogg", "frog", "yes", "train", "ESC-50", "fold3", "frogs.ogg"),
        ("audio/rain/rain_gpl.ogg", "rain", "no", "train", "gcompris", "", "rain.ogg"),
        ("audio/rooster/rooster_one.ogg", "rooster", "yes", "val", "ESC-50", "fold4", "rooster.ogg"),
        ("audio/rooster/rooster_two.ogg", "rooster", "yes", "val", "donateacry", "", "rooster.ogg"),
        (excluded, "dog", "yes", "train", "gcompris", "", "dog.ogg"),
    ]
    fields = ["file", "label", "weights_ok", "split", "source", "official_fold"]
    more = {"description": "x", "author_or_url": "someone", "licence": "CC0", "original_label": "y"}
    (data / "sounds").mkdir()
    with open(data / "sounds" / "metadata.csv", "w") as handle:
        writer = csv.DictWriter(handle, [*fields, *more, "recording"])
        writer.writeheader()
        for *values, clip in rows:
            recording = "a pond" if values[1] == "frog" else values[0]
            writer.writerow({**dict(zip(fields, values)), **more, "recording": recording})
            target = data / "sounds" / values[0]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CLIPS / clip, target)
    return data


@pytest.fixture(scope="module")
def work(collection, tmp_path_factory):
    """What `prepare`, `finish` and `card` leave, with a training that has done nothing in between."""
    work = tmp_path_factory.mktemp("work")
    argv = sys.argv
    try:
        for command in ("prepare", "finish", "card"):
            more = ["--scenes", "8", "--workers", "1"] if command == "prepare" else []
            sys.argv = ["make_sam_tiny", command, "--data", str(collection), "--work", str(work), *more]
            recipe.main()
            if command == "prepare":
                shutil.copytree(work / "initial", work / "stages" / "stage-4" / "last")
                (work / "command.txt").write_text("SEED=7 sh examples/sam_tiny/train.sh\n")
                score = {"value": 0.5, "interval": [0.4, 0.6], "count": 2, "predictions": [{"correct": True}] * 1}
                (work / "esc50.json").write_text(json.dumps(score))
                kinds = {"binary": {**score, "value": 0.9}, "multiple_choice": {**score, "value": 0.7}}
                (work / "questions.json").write_text(json.dumps({"by_kind": kinds}))
                (work / "pretrained").mkdir()
                (work / "pretrained" / "classifier.json").write_text(json.dumps({**score, "value": 0.6}))
    finally:
        sys.argv = argv
    return work


def rows_of(path) -> list[dict]:
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


def test_prepare_writes_the_tables(work, collection):
    for name in ("classification", "closed", "open"):
        rows = rows_of(work / f"{name}.csv")
        assert all((work / row["audio"]).is_file() for row in rows)
        clips = {row["audio"] for row in rows if not row["audio"].startswith("scenes/")}
        assert {str(Path(clip).relative_to(collection / "sounds" / "audio")) for clip in clips} == TRAINED
        assert len({row["audio"] for row in rows} - clips) == 8
    single = rows_of(work / "single.csv")
    assert [
        row for row in rows_of(work / "classification.csv") if row["audio"] in {r["audio"] for r in single}
    ] == single
    assert len(single) == 2 * len(TRAINED)
    assert {row["audio"] for row in rows_of(work / "text.csv")} == {""}
    asked = {Path(row["audio"]).name for row in rows_of(work / "questions.csv")}
    assert asked == {"rooster_one.ogg", "rooster_two.ogg"}  # none that was trained on
    validation = rows_of(work / "validation.csv")
    assert [(Path(row["audio"]).parts[-2:], row["answer"]) for row in validation] == [
        (("rooster", "rooster_two.ogg"), "Rooster crowing.")
    ]
    folds = {row["filename"]: row["fold"] for row in rows_of(work / "esc50" / "meta" / "esc50.csv")}
    assert folds == {"dog_two.ogg": "3", "rain_one.ogg": "3", "frog_again.ogg": "3", "rooster_one.ogg": "4"}


def test_development_holds_a_fold_out(collection):
    train, validation = recipe.training_clips(recipe.read_metadata(collection), development=True)
    assert {row["official_fold"] for row in validation} == {"fold3"} and len(validation) == 3
    assert {row["official_fold"] for row in train} == {"fold1", "fold2", ""}
    assert "audio/frog/frog_one.ogg" not in {row["file"] for row in train}  # a recording of the held-out fold
    assert len(train) == 4


def tokens_of_its_own(path):
    tokenizer = AutoProcessor.from_pretrained(path).tokenizer
    assert len(tokenizer("&&")["input_ids"]) == 1
    for text in ("Dog barking and rain falling.", "Ünïcode, 雨\n\n### Response:\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def is_small(path):
    weights = path / "model.safetensors"
    assert weights.stat().st_size <= 16_000_000
    with safe_open(weights, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) <= 8_000_000
    kept = {name for name in types if name.endswith((".A_log", ".D", ".dt_bias"))}  # a few numbers a layer
    assert {name for name, kind in types.items() if kind != "BF16"} == kept


def loads_by_the_auto_classes(path):
    assert type(AutoConfig.from_pretrained(path)) is SamConfig
    for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM):
        model, info = auto_class.from_pretrained(path, output_loading_info=True)
        assert type(model) is SamForConditionalGeneration
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(AutoProcessor.from_pretrained(path)) is SamAudioLanguageProcessor
    assert AutoFeatureExtractor.from_pretrained(path).feature_size == 128


def names_its_code_and_has_none(path):
    models = {name: value for name, value in AUTO_MAP.items() if "Model" in name or name == "AutoConfig"}
    assert models.items() <= json.loads((path / "config.json").read_text())["auto_map"].items()
    written = (path / "processor_config.json").read_text()
    assert AUTO_MAP["AutoProcessor"] in written and AUTO_MAP["AutoFeatureExtractor"] in written
    assert not list(path.rglob("*.py")) and not (path / "__pycache__").exists()


def a_copy_has_its_code(path, copy):
    AutoModel.from_pretrained(path).save_pretrained(copy)
    AutoProcessor.from_pretrained(path).save_pretrained(copy)
    modules = {f"{value.split('.')[0]}.py" for value in AUTO_MAP.values()}
    names = {file.name for file in copy.iterdir()}
    assert modules | {"mamba_sam.py", "kernels_sam.py", "generation_sam.py", "model.safetensors"} <= names


CHECKS = [tokens_of_its_own, is_small, loads_by_the_auto_classes, names_its_code_and_has_none]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_what_the_recipe_makes(work, check):
    check(work / "sam-tiny")


def test_a_copy_of_what_the_recipe_makes_has_its_code(work, tmp_path):
    a_copy_has_its_code(work / "sam-tiny", tmp_path)


def test_finish_writes_no_weights_without_their_licence(run, work, collection, tmp_path, monkeypatch):
    last = tmp_path / "stages" / "stage-4" / "last"
    shutil.copytree(work / "stages" / "stage-4" / "last", last)
    found = []
    monkeypatch.setattr(recipe, "save_checkpoint", lambda model, processor, folder: found.extend(folder.iterdir()))
    run(recipe, "finish", "--data", collection, "--work", tmp_path)
    assert {path.name for path in found} == {"ATTRIBUTION.csv", "LICENSE"}


def test_finish_attributes_and_card_tells(work):
    files = {row["file"] for row in rows_of(work / "sam-tiny" / "ATTRIBUTION.csv")}
    assert files == {f"audio/{name}" for name in TRAINED}
    card = (work / "sam-tiny" / "README.md").read_text()
    assert "**50.0 %** (1 clips; 95 % interval 40.0 to 60.0 %" in card
    assert all(f"{value} %" in card for value in ("60.0", "90.0", "70.0"))
    assert "SEED=7 sh examples/sam_tiny/train.sh" in card
    assert "non-commercial" in (work / "sam-tiny" / "LICENSE").read_text()


# -- The checkpoint -----------------------------------------------------------------------------------------------


@needs_sam_tiny
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_sam_tiny(check):
    check(SAM_TINY)


@needs_sam_tiny
def test_a_copy_of_sam_tiny_has_its_code(tmp_path):
    a_copy_has_its_code(SAM_TINY, tmp_path)


@needs_sam_tiny
def test_sam_tinys_card_and_licence():
    card = (SAM_TINY / "README.md").read_text()
    assert re.search(r"^license: other$", card, re.MULTILINE)
    assert re.search(r"^pipeline_tag: audio-text-to-text$", card, re.MULTILINE)
    (value,) = re.findall(r"\*\*(\d+\.\d) %\*\*", card)
    assert float(value) >= 35
    assert "sh examples/sam_tiny/train.sh" in card and "SEED=" in card and "ESC-50" in card
    assert "CC BY-NC 3.0" in (SAM_TINY / "LICENSE").read_text()


@needs_sam_tiny
def test_sam_tiny_attributes_no_other_licence():
    rows = rows_of(SAM_TINY / "ATTRIBUTION.csv")
    assert len({row["file"] for row in rows}) == len(rows) > 1000
    assert not {row["file"] for row in rows} & recipe.excluded_files()
    for row in rows:
        assert row["author_or_url"] or row["description"] or row["source"], row
        licence = row["licence"].split(" ; pack")[0]  # the recording's own, not that of what it came in
        assert not re.search(r"GPL|-SA|Sampling|ODbL", licence), row


@needs_sam_tiny
@needs(SOUNDS)
def test_sam_tiny_attributes_what_it_was_trained_on():
    train, _ = recipe.training_clips(recipe.read_metadata(DATA))
    attributed = [(row["file"], row["licence"]) for row in rows_of(SAM_TINY / "ATTRIBUTION.csv")]
    assert sorted(attributed) == sorted((row["file"], row["licence"]) for row in train)


@pytest.fixture(scope="module")
def described():
    """The text for each clip, and the seconds that it took."""
    model, processor = AutoModel.from_pretrained(SAM_TINY), AutoProcessor.from_pretrained(SAM_TINY)
    results = {}
    for clip in AUDIO:
        begin = time.perf_counter()
        inputs = processor(text=DEFAULT_PROMPT, audio=str(clip), overflow="truncate", return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]
        results[clip.name] = processor.decode(tokens, skip_special_tokens=True), time.perf_counter() - begin
    return results


@needs_sam_tiny
def test_sam_tiny_describes_the_clips(described):
    assert all(re.fullmatch(r"[A-Z][^\n]{3,120}\.", text) for text, _ in described.values()), described
    assert len({text for text, _ in described.values()}) >= 5  # it hears differences


@needs_sam_tiny
@pytest.mark.timing
def test_sam_tiny_describes_the_clips_in_time(described):
    assert max(seconds for _, seconds in described.values()) < 2


@needs_sam_tiny
def test_sam_tiny_is_answered_the_same_in_bf16_and_fp32():
    processor = AutoProcessor.from_pretrained(SAM_TINY)
    inputs = processor(text=DEFAULT_PROMPT, audio=str(CLIPS / "dog.ogg"), return_tensors="pt")
    answers = []
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModel.from_pretrained(SAM_TINY, dtype=dtype)
        answers.append(processor.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))
    assert answers[0] == answers[1]
