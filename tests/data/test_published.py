"""Readers of published files: OpenAQA, ReasonAQA."""

import itertools
import json
import math
from pathlib import Path

import pytest
from shared import DATA, needs

from processing_sam import PROMPT_TEMPLATE
from sam_lab.common.json_files import read_json
from sam_lab.data import published as published_module
from sam_lab.data.published import CAPTION_PROMPTS, read_openaqa, read_reasonaqa

ROOT = Path(__file__).resolve().parents[2]
REAL_FILE = DATA / "text" / "bench" / "ltu_as_strong_eval_sample_600.json"


def test_a_file_that_is_not_there_is_said_before_reading(tmp_path):
    for reader in (read_json, read_openaqa, read_reasonaqa):
        with pytest.raises(FileNotFoundError, match=r"there is no file '.*none\.json'"):
            reader(tmp_path / "none.json")


# -- OpenAQA ------------------------------------------------------------------------------------------------------


def write(path, items):
    path.write_text(json.dumps(items, indent=1))
    return path


def openaqa(**changes):
    item = {
        "instruction": "What can be inferred from the bark?",
        "input": "",
        "audio_id": "/data/sls/audioset/dave_version/audio/LZq4Neh-oWU.flac",
        "dataset": "as_strong_train",
        "task": "open-ended question",
        "output": "A dog is near.",
    }
    return {key: value for key, value in {**item, **changes}.items() if value is not None}


def test_an_openaqa_record(tmp_path):
    path = write(tmp_path / "q.json", [openaqa(), openaqa(task="classification", instruction="Name the sounds.")])
    first, second = read_openaqa(path, closed_prefix=0)
    assert first == {
        "audio": "/data/sls/audioset/dave_version/audio/LZq4Neh-oWU.flac",
        "prompt": "What can be inferred from the bark?",
        "answer": "A dog is near.",
        "source": "as_strong_train",
        "kind": "open",
    }
    assert second == {**first, "prompt": "Name the sounds.", "kind": "closed"}


def test_an_input_gives_ltus_text(tmp_path):
    path = write(tmp_path / "q.json", [openaqa(input="I am so sad"), openaqa(input="  ")])
    first, second = read_openaqa(path)
    # alpaca_short's prompt_input, LTU's template for records with an input
    expected = "### Instruction:\nWhat can be inferred from the bark?\n\n### Input:\nI am so sad\n\n### Response:\n"
    assert PROMPT_TEMPLATE.format(prompt=first["prompt"]) == expected
    assert second["prompt"] == "What can be inferred from the bark?"


@pytest.mark.parametrize(
    ("task", "instruction", "kind"),
    [
        ("open-ended question", "Caption it.", "open"),
        ("Open_ended QA", "Why?", "open"),
        ("classification", "Name the sounds.", "closed"),
        ("temporal single", "Caption this.", "caption"),
        ("caption", "Write it.", "caption"),
        ("label_caption", "Write it.", "caption"),
        (None, "Why?", "other"),
        ("", "Write a caption.", "other"),
        (None, "Closed-ended question: Name the sounds.", "closed"),
        (None, "Closed-ended question: Write an audio caption.", "caption"),
    ],
)
def test_kinds_of_openaqa(tmp_path, task, instruction, kind):
    (record,) = read_openaqa(write(tmp_path / "q.json", [openaqa(task=task, instruction=instruction)]))
    assert record["kind"] == kind


def test_the_source_without_a_dataset_is_the_files_name(tmp_path):
    (record,) = read_openaqa(write(tmp_path / "mine.json", [openaqa(dataset=None)]))
    assert record["source"] == "mine"


def test_the_prefix_of_closed_questions(tmp_path):
    """Half of the closed ones; a file of LTU's mix, half of which has it already, gets as many and not more."""
    prefix = "Closed-ended question: "
    tasks = ["classification", "caption", "open-ended question", "temporal"] * 500
    plain = write(tmp_path / "plain.json", [openaqa(task=task) for task in tasks])
    mixed = [openaqa(task=task) for task in tasks]
    for item in mixed[::3]:
        if item["task"] != "open-ended question":
            item["instruction"] = prefix + item["instruction"]
    mixed = write(tmp_path / "mixed.json", mixed)
    lines = tmp_path / "lines.jsonl"
    lines.write_text("\n".join(json.dumps(item) for item in json.loads(plain.read_text())))

    prompts = {}
    for name, path, seed in [("plain", plain, 0), ("again", plain, 0), ("mixed", mixed, 0), ("lines", lines, 0)]:
        prompts[name] = [record["prompt"] for record in read_openaqa(path, seed=seed)]
    assert prompts["plain"] == prompts["again"] == prompts["mixed"] == prompts["lines"]
    has = [prompt.startswith(prefix) for prompt in prompts["plain"]]
    assert not any(has[2::4]) and not any(prompt.count(prefix) > 1 for prompt in prompts["plain"])
    # 1,500 closed: 750, give or take four standard deviations of 19.4
    assert abs(sum(has) - 750) < 78
    # Neither runs nor patterns: neighbours agree half of the time.
    closed = [value for index, value in enumerate(has) if index % 4 != 2]
    assert abs(sum(a == b for a, b in itertools.pairwise(closed)) - 750) < 78

    other = [record["prompt"].startswith(prefix) for record in read_openaqa(plain, seed=1)]
    assert abs(sum(a == b for a, b, task in zip(has, other, tasks) if "open" not in task) - 750) < 78
    quarter = [record["prompt"].startswith(prefix) for record in read_openaqa(plain, 0.25)]
    assert abs(sum(quarter) - 375) < 68  # four of 16.8
    assert sum(record["prompt"].startswith(prefix) for record in read_openaqa(plain, 1)) == 1500
    assert sum(record["prompt"].startswith(prefix) for record in read_openaqa(mixed, 0)) == 0
    kept = [record["prompt"] for record in read_openaqa(mixed, None)]
    assert kept == [item["instruction"] for item in json.loads(mixed.read_text())]
    for wrong in (1.5, -0.1):
        with pytest.raises(ValueError, match="closed_prefix: got"):
            read_openaqa(plain, wrong)


def test_the_prefix_does_not_depend_on_the_filter(tmp_path):
    items = [openaqa(task="classification", output="It is UNCLEAR." if i % 3 else f"Answer {i}.") for i in range(300)]
    path = write(tmp_path / "q.json", items)
    whole = {record["answer"]: record["prompt"] for record in read_openaqa(path)}
    kept = {record["answer"]: record["prompt"] for record in read_openaqa(path, skip_unanswerable=True)}
    assert len(kept) == 100 and len(set(kept.values())) == 2
    assert kept == {answer: prompt for answer, prompt in whole.items() if answer in kept}


@pytest.mark.parametrize(
    "answer",
    [
        "It cannot be determined from the audio.",
        "Sorry, I do not know.",
        "There is not enough information.",
        "It is not possible to tell.",
        "The purpose is not specified.",
        "This is difficult to determine.",
        "Without more information, no.",
        "No indication of that.",
    ],
)
def test_unanswerable_questions_can_be_left_out(tmp_path, answer):
    path = write(tmp_path / "q.json", [openaqa(output=answer), openaqa(output="A dog, I can tell.")])
    assert [record["answer"] for record in read_openaqa(path)] == [answer, "A dog, I can tell."]
    assert [record["answer"] for record in read_openaqa(path, skip_unanswerable=True)] == ["A dog, I can tell."]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"output": None},
            "record 2 lacks output; it has instruction, input, audio_id, dataset, task, expected OpenAQA",
        ),
        ({"output": None, "audio_id": None}, "record 2 lacks audio_id, output;"),
        ({"output": 7}, "record 2 has 7 as output, expected text"),
        ({"output": 0}, "record 2 has 0 as output, expected text"),
        ({"output": False}, "record 2 has False as output, expected text"),
        ({"output": []}, r"record 2 has \[\] as output, expected text"),
        ({"output": "A \ud83d."}, "record 2 has half of a surrogate pair in its output, 'A .ud83d.', expected"),
        ({"audio_id": "\udc00.wav"}, "record 2 has half of a surrogate pair in its audio_id"),
        ({"instruction": ""}, "record 2 has '' as instruction"),
        ({"audio_id": 7}, "record 2 has 7 as audio_id"),
        ({"task": 7}, "record 2 has 7 as task, expected text"),
        ({"input": ["x"]}, r"record 2 has \['x'\] as input, expected text"),
    ],
)
def test_a_malformed_openaqa_record_is_named(tmp_path, wrong, message):
    path = write(tmp_path / "q.json", [openaqa(), openaqa(**wrong)])
    with pytest.raises(ValueError, match=rf"q\.json: {message}"):
        list(read_openaqa(path))


@needs(REAL_FILE)
def test_a_real_file_without_answers_is_refused():
    """LTU's events of AudioSet: six keys, of which `output` is none."""
    assert len(list(read_json(REAL_FILE))) == len(json.loads(REAL_FILE.read_text()))
    with pytest.raises(
        ValueError, match="record 1 lacks output; it has instruction, input, dataset, audio_id, temporal"
    ):
        list(read_openaqa(REAL_FILE))


# -- ReasonAQA ----------------------------------------------------------------------------------------------------


def reasonaqa(**changes):
    item = {
        "taskname": "clothov21",
        "filepath1": "Clotho/dev/Dog.wav",
        "filepath2": "",
        "caption1": "A dog barks twice.",
        "caption2": "",
        "input": "Is there a Dog?",
        "answer": "Yes",
        "subtype": "ClothoAQA.json",
    }
    return {**item, **changes}


def test_a_reasonaqa_record(tmp_path):
    path = write(tmp_path / "train.json", [reasonaqa()])
    (record,) = read_reasonaqa(path)
    expected = {"audio": "Clotho/dev/Dog.wav", "prompt": "is there a dog?", "answer": "yes", "source": "clothov21"}
    assert record == {**expected, "kind": "binary"}
    (record,) = read_reasonaqa(path, lowercase=False)
    assert record == {**expected, "prompt": "Is there a Dog?", "answer": "Yes", "kind": "binary"}


@pytest.mark.parametrize(
    ("subtype", "question", "answer", "kind"),
    [
        ("ClothoAQA.json", "is it a dog?", "no", "binary"),
        ("CLE.json", "what can be said?", "a) it is definitely true", "multiple_choice"),
        ("ACE.json", "what can be said?", "b) it is definitely false", "multiple_choice"),
        ("Clotho-MCQ.json", "which?", "a) dog", "multiple_choice"),
        ("AudioCaps-MCQ.json", "which?", "yes", "multiple_choice"),  # the subtype comes first
        ("AudioCaps-Detail.json", "tell all a) b)", "it is ...", "detail"),
        ("Clotho-Detail.json", "tell all", "yes", "detail"),
        ("AudioCaps.json", "caption first audio", "-", "caption"),
        ("Clotho.json", "caption first audio", "-", "caption"),
        ("clothov21.json", "caption first audio", "-", "caption"),
        ("New.json", "caption first audio", "-", "caption"),
        ("New.json", "what is it? a) a dog b) a cat", "a) a dog", "multiple_choice"),
        ("New.json", "is it a dog?", "No.", "binary"),
        ("New.json", "what is it?", "a dog", "other"),
    ],
)
def test_kinds_of_reasonaqa(tmp_path, subtype, question, answer, kind):
    path = write(tmp_path / "train.json", [reasonaqa(subtype=subtype, input=question, answer=answer)])
    (record,) = read_reasonaqa(path)
    assert record["kind"] == kind


def test_records_on_two_clips_are_left_out_and_counted(tmp_path):
    two = [
        reasonaqa(filepath2="Clotho/dev/Cat.wav", subtype="CLD-1.json", input="explain the difference in few words"),
        reasonaqa(filepath2="Clotho/dev/Cat.wav"),
        reasonaqa(caption2="A cat meows."),
        reasonaqa(subtype="ACD-3.json"),
        reasonaqa(input="caption second audio", subtype="Clotho.json"),
        reasonaqa(input="Caption both audios.", subtype="Clotho.json", answer=""),
        reasonaqa(input="explain the difference in a sentence", subtype="x.json"),
        reasonaqa(input="caption second audio", filepath1="", filepath2="b.wav", caption1="", caption2="B."),
    ]
    counts = {}
    path = write(tmp_path / "train.json", [reasonaqa(), *two, reasonaqa(filepath2=None, answer="no")])
    assert [record["answer"] for record in read_reasonaqa(path, counts=counts)] == ["yes", "no"]
    assert counts == {"records": 10, "two_audio": 8, "unanswered": 0}
    list(read_reasonaqa(path, counts=counts))  # of a second file
    assert counts == {"records": 20, "two_audio": 16, "unanswered": 0}


def test_the_placeholder_for_a_caption_is_worded(tmp_path):
    items = [reasonaqa(input="caption first audio", subtype="Clotho.json", answer="") for _ in range(2000)]
    path = write(tmp_path / "train.json", items)
    records = list(read_reasonaqa(path))
    assert {record["answer"] for record in records} == {"a dog barks twice."}
    prompts = [record["prompt"] for record in records]
    assert prompts == [record["prompt"] for record in read_reasonaqa(path)]
    assert prompts != [record["prompt"] for record in read_reasonaqa(path, seed=1)]
    assert set(prompts) == set(CAPTION_PROMPTS)
    assert not any("first" in prompt or "two" in prompt or "audio 1" in prompt for prompt in CAPTION_PROMPTS)
    share = 1 / len(CAPTION_PROMPTS)
    deviation = math.sqrt(2000 * share * (1 - share))
    assert max(abs(prompts.count(prompt) - 2000 * share) for prompt in CAPTION_PROMPTS) < 4 * deviation


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"answer": 7}, "record 2 has 7 as answer, expected text"),
        ({"answer": 0}, "record 2 has 0 as answer, expected text"),
        ({"filepath2": []}, r"record 2 has \[\] as filepath2, expected text"),
        ({"answer": "\ud83d"}, "record 2 has half of a surrogate pair in its answer"),
        ({"filepath1": ""}, "record 2 has '' as filepath1"),
        ({"input": ""}, "record 2 has '' as input"),
        ({"caption1": 3}, "record 2 has 3 as caption1, expected text"),
    ],
)
def test_a_malformed_reasonaqa_record_is_named(tmp_path, wrong, message):
    path = write(tmp_path / "train.json", [reasonaqa(), reasonaqa(**wrong)])
    with pytest.raises(ValueError, match=rf"train\.json: {message}"):
        list(read_reasonaqa(path))


def test_a_missing_key_of_reasonaqa_is_named(tmp_path):
    item = reasonaqa()
    del item["subtype"], item["caption2"]
    path = write(tmp_path / "train.json", [item])
    with pytest.raises(ValueError, match=r"record 1 lacks caption2, subtype; .* expected ReasonAQA's taskname"):
        list(read_reasonaqa(path))


# -- Empty answers ------------------------------------------------------------------------------------------------


@pytest.fixture
def warnings(monkeypatch):
    """What is warned of."""
    said = []
    monkeypatch.setattr(published_module.logger, "warning", said.append)
    return said


def test_openaqa_without_an_answer_is_left_out_and_counted(tmp_path, warnings):
    items = [openaqa(), openaqa(output=" "), openaqa(output=""), openaqa(output="A cow.")]
    path = write(tmp_path / "q.json", items)
    assert [record["answer"] for record in read_openaqa(path)] == [items[0]["output"], "A cow."]
    assert warnings == [f"{path}: 2 records have an empty answer and are skipped."]
    assert len(list(read_openaqa(write(tmp_path / "whole.json", items[:1])))) == len(warnings) == 1


def test_reasonaqa_without_an_answer_is_left_out_and_counted(tmp_path, warnings):
    nothing = {"input": "caption first audio", "caption1": "", "answer": ""}
    path = write(tmp_path / "train.json", [reasonaqa(), reasonaqa(answer=""), reasonaqa(**nothing)])
    counts = {}
    assert len(list(read_reasonaqa(path, counts=counts))) == 1
    assert counts == {"records": 3, "two_audio": 0, "unanswered": 2} and len(warnings) == 1


def test_what_openaqa_leaves_out_is_counted(tmp_path):
    items = [openaqa(), openaqa(task="classification"), openaqa(task="caption", output="Sorry."), openaqa(output=" ")]
    path = write(tmp_path / "q.json", [*items, openaqa(task=None)])
    counts = {}
    assert len(list(read_openaqa(path, skip_unanswerable=True, counts=counts))) == 3
    assert counts == {"records": 5, "closed": 2, "open": 2, "unanswered": 1, "unanswerable": 1}
    assert len(list(read_openaqa(path, counts=counts))) == 4  # of a second file
    assert counts == {"records": 10, "closed": 4, "open": 4, "unanswered": 2, "unanswerable": 1}


def test_the_warning_is_of_one_file(tmp_path, warnings):
    path = write(tmp_path / "q.json", [openaqa(output="")])
    counts = {}
    for number in (1, 2):
        assert list(read_openaqa(path, counts=counts)) == []
        assert warnings == [f"{path}: 1 records have an empty answer and are skipped."] * number
