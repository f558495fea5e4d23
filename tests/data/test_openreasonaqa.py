"""OpenReasonAQA: what is in the mix, counted by hand, and how it is written."""

import itertools
import json
import math
import shutil
import threading
from collections import Counter
from pathlib import Path

import pytest
from shared import NEOX, needs
from tiny import tiny_tokenizer
from tokenizers import Tokenizer

from processing_sam import PROMPT_TEMPLATE
from sam_lab.data import openreasonaqa as openreasonaqa_module
from sam_lab.data.coverage import coverage_table
from sam_lab.data.openreasonaqa import OpenReasonAQA, build_openreasonaqa, is_caption_style, report_table
from sam_lab.data.records import read_summary, records_dataset, write_records

ROOT = Path(__file__).resolve().parents[2]

CLOSED = ["Name it.", "Name all.", "When is it?", "Write an audio caption."]
# Question, answer, and by which rules it is caption-style.
OPEN = [
    ("Describe the sound.", "A dog barks.", {"all_open", "caption_words", "not_yes_no"}),
    ("What can be heard here?", "Rain.", {"all_open", "caption_words", "not_yes_no"}),
    ("Is the dog angry?", "Yes, it barks.", {"all_open"}),
    ("Could it be indoors?", "no.", {"all_open"}),
    ("Why does it bark?", "Nobody knows.", {"all_open", "not_yes_no"}),
    ("Give a summary.", "No sound at all.", {"all_open", "caption_words"}),
]
BINARY = ["is it a dog?", "is it a cat?", "is it loud?"]
CHOICE = ["which? a) dog b) cat", "where? a) here b) there"]


def openaqa(index, question, answer, closed):
    return {
        "instruction": question,
        "input": "",
        "audio_id": f"/there/o{index}.wav",
        "dataset": "vggsound_train" if index % 2 else "as_strong_train",
        "task": "temporal" if closed else "open-ended question",
        "output": answer,
    }


def reasonaqa(index, subtype, question, answer, second=""):
    return {
        "taskname": "audiocaps",
        "filepath1": f"AudioCapsLarger/r{index}.wav",
        "filepath2": second,
        "caption1": "A dog.",
        "caption2": "A cat." if second else "",
        "input": question,
        "answer": answer,
        "subtype": subtype,
    }


@pytest.fixture
def files(tmp_path):
    """Ten records of OpenAQA, four of them closed; seven of ReasonAQA on one clip, five of which can replace."""
    opens = [openaqa(4 + index, question, answer, False) for index, (question, answer, _) in enumerate(OPEN)]
    closed = [openaqa(index, question, "dog", True) for index, question in enumerate(CLOSED)]
    (tmp_path / "openaqa.json").write_text(json.dumps([*opens[:2], *closed, *opens[2:]], indent=1))
    items = [reasonaqa(index, "ClothoAQA.json", question, "yes") for index, question in enumerate(BINARY)]
    items += [reasonaqa(3 + index, "AudioCaps-MCQ.json", question, "a) dog") for index, question in enumerate(CHOICE)]
    items.append(reasonaqa(5, "AudioCaps.json", "caption first audio", ""))
    items.append(reasonaqa(6, "AudioCaps-Detail.json", "tell all", "a dog barks"))
    items += [reasonaqa(7 + index, "ACD-1.json", "which differs?", "a", "b.wav") for index in range(2)]
    (tmp_path / "train.json").write_text(json.dumps(items))
    return tmp_path / "openaqa.json", [tmp_path / "train.json"]


def mix(files, size, reading="whole", caption_rule="all_open", **options) -> OpenReasonAQA:
    plain = {"check_audio": False, "closed_prefix": 0, **options}
    return OpenReasonAQA(*files, size, reading, caption_rule, **plain)


# -- What is in it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["all_open", "caption_words", "not_yes_no"])
def test_which_questions_are_caption_style(rule):
    for question, answer, rules in OPEN:
        assert is_caption_style({"prompt": question, "answer": answer}, rule) == (rule in rules), question


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Can you provide a description of the clip?", True),
        ("Summarise what happens.", True),
        ("Summarize what happens.", True),
        ("What sounds can you hear in this clip?", True),
        ("What sounds are present in the audio?", True),
        ("Caption this.", True),
        ("What can be inferred about the dog's mood?", False),
        ("How would you prescribe it?", False),
        ("Why do the sounds stop?", False),
    ],
)
def test_words_of_caption_style_questions(question, expected):
    assert is_caption_style({"prompt": question, "answer": "Yes."}, "caption_words") == expected


@pytest.mark.parametrize(
    ("reading", "rule", "size", "opens", "replacing"),
    [
        # "whole": 4 closed; the rest of the size is one pass of the 5, then open ones, then further passes
        ("whole", "all_open", 20, 0, 16),
        ("whole", "caption_words", 20, 3, 13),
        ("whole", "not_yes_no", 20, 3, 13),
        ("whole", "caption_words", 12, 3, 5),  # just room for all, once
        ("whole", "caption_words", 11, 2, 5),
        ("whole", "caption_words", 9, 0, 5),
        ("whole", "caption_words", 7, 0, 3),
        ("whole", "all_open", 4, 0, 0),
        # "replacement": 4 closed, all other open ones, and as many as the size says
        ("replacement", "all_open", 7, 0, 7),
        ("replacement", "caption_words", 7, 3, 7),
        ("replacement", "not_yes_no", 5, 3, 5),
        ("replacement", "caption_words", 2, 3, 2),
    ],
)
def test_the_mix_is_as_counted_by_hand(files, reading, rule, size, opens, replacing):
    ours = mix(files, size, reading, rule)
    prompts = Counter(record["prompt"] for record in ours.records())
    assert sum(prompts.values()) == ours.report["rows"] == 4 + opens + replacing
    assert {prompt: prompts[prompt] for prompt in CLOSED} == dict.fromkeys(CLOSED, 1)
    stay = [question for question, _, rules in OPEN if rule not in rules]
    assert sum(prompts[question] for question in stay) == opens
    assert all(prompts[question] <= (question in stay) for question, _, _ in OPEN)
    times = [prompts[question] for question in BINARY + CHOICE]
    assert sum(times) == replacing and max(times) - min(times) == (replacing % 5 > 0)
    assert set(prompts) <= {*CLOSED, *stay, *BINARY, *CHOICE}

    report = ours.report
    expected = {"rows": replacing, "distinct": 5, "times_at_least": min(times), "times_at_most": max(times)}
    assert report["replacing"] == expected
    assert report["two_audio_left_out"] == 2
    rows = {(entry["collection"], entry["kind"], entry["source"]): entry for entry in report["table"]}
    number = {key: entry["read"] for key, entry in rows.items()}
    assert number == {
        ("OpenAQA", "caption", "vggsound_train"): 1,
        ("OpenAQA", "closed", "as_strong_train"): 2,
        ("OpenAQA", "closed", "vggsound_train"): 1,
        ("OpenAQA", "open", "as_strong_train"): 3,
        ("OpenAQA", "open", "vggsound_train"): 3,
        ("ReasonAQA", "binary", "audiocaps"): 3,
        ("ReasonAQA", "caption", "audiocaps"): 1,
        ("ReasonAQA", "detail", "audiocaps"): 1,
        ("ReasonAQA", "multiple_choice", "audiocaps"): 2,
    }
    assert sum(entry["gives_way"] for entry in report["table"]) == 6 - len(stay)
    assert rows["ReasonAQA", "binary", "audiocaps"]["rows"] == sum(prompts[question] for question in BINARY)
    assert rows["ReasonAQA", "detail", "audiocaps"]["rows"] == 0
    odd = [question for index, (question, *_) in enumerate(OPEN) if index % 2]
    assert rows["OpenAQA", "open", "vggsound_train"]["rows"] == sum(prompts[question] for question in odd)


def test_other_kinds_can_replace(files):
    ours = mix(files, 11, replacing_kinds=("binary", "caption", "detail", "multiple_choice"))
    assert Counter(record["kind"] for record in ours.records()) == {
        "closed": 3,
        "caption": 2,
        "binary": 3,
        "multiple_choice": 2,
        "detail": 1,
    }


def test_several_files_of_reasonaqa(files):
    openaqa, (train,) = files
    copy = shutil.copy(train, train.with_name("copy.json"))
    ours = mix((openaqa, [train, copy]), 14)
    assert ours.report["replacing"]["distinct"] == 10 and ours.report["two_audio_left_out"] == 4


def test_the_options_of_the_readers_are_passed_on(files):
    prompts = [record["prompt"] for record in mix(files, 20, closed_prefix=1, lowercase=False).records()]
    assert sum(prompt.startswith("Closed-ended question: ") for prompt in prompts) == 4
    items = json.loads(files[0].read_text())
    items[3]["output"] = "It is unclear."  # a closed one
    files[0].write_text(json.dumps(items))
    assert mix(files, 20, skip_unanswerable=True).report["replacing"]["rows"] == 17


def test_draws_are_seeded(files):
    def order(seed, size=11):
        return [record["prompt"] for record in mix(files, size, caption_rule="caption_words", seed=seed).records()]

    assert order(0) == order(0)
    assert len({tuple(order(seed)) for seed in range(5)}) == 5
    # Which open question is left out, and which replacing ones are taken once more
    assert len({frozenset(order(seed)) for seed in range(20)}) == 3
    assert len({frozenset(Counter(order(seed, 18)).items()) for seed in range(20)}) > 3


def test_the_order_is_random(files, monkeypatch):
    first = [[record["prompt"] for record in mix(files, 20, seed=seed).records()] for seed in range(100)]
    for prompt in (CLOSED[0], CLOSED[3]):
        mean = sum(order.index(prompt) for order in first) / 100
        assert abs(mean - 9.5) < 4 * math.sqrt((20**2 - 1) / 12 / 100)
    monkeypatch.setattr(openreasonaqa_module, "ROWS_A_FILE", 3)  # seven temporary files give the same order
    assert [record["prompt"] for record in mix(files, 20, seed=7).records()] == first[7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reading": "half"}, "reading: got 'half', expected one of 'whole', 'replacement'"),
        ({"caption_rule": "some"}, "caption_rule: got 'some', expected one of 'all_open'"),
        ({"size": 3}, "size: got 3, expected at least the 4 closed questions"),
        ({"size": 0}, "size: got 0, expected an integer of at least 1"),
        ({"seed": -1}, "seed: got -1, expected an integer of at least 0"),
        ({"cutoff": 0}, "cutoff: got 0, expected an integer of at least 1"),
        ({"max_missing": 5}, "max_missing: got 5, expected a share from 0 to 1"),
        ({"max_missing": math.nan}, "max_missing: got nan"),
        ({"closed_prefix": 2}, "closed_prefix: got 2"),
        ({"tokenizer": "/none/tokenizer.json"}, "tokenizer: got '/none/tokenizer.json', expected a tokenizer.json"),
        ({"tokenizer": __file__}, "tokenizer: got .*test_openreasonaqa.py', expected a tokenizer.json"),
        ({"replacing_kinds": ("other",)}, "reasonaqa: no record with audio is of kind other, expected 16 of them"),
    ],
)
def test_what_cannot_be_mixed_is_an_error(files, options, message):
    with pytest.raises(ValueError, match=message):
        mix(files, **{"size": 20, **options})


@pytest.mark.parametrize("name", ["seed", "cutoff", "max_missing", "tokenizer"])
def test_arguments_are_checked_before_files_are_read(files, monkeypatch, name):
    monkeypatch.setattr(openreasonaqa_module, "read_openaqa", lambda *args, **kwargs: pytest.fail("read"))
    with pytest.raises(ValueError, match=f"{name}: got"):
        mix(files, 20, **{name: "/none" if name == "tokenizer" else -1})


def test_the_same_file_twice_is_an_error(files):
    openaqa, (train,) = files
    again = train.parent / "." / ".." / train.parent.name / train.name
    for given in ((openaqa, [train, again]), (train, [train])):
        with pytest.raises(ValueError, match=r"reasonaqa: got .*train\.json' twice, expected each file once"):
            mix(given, 20)


@pytest.mark.parametrize("which", ["openaqa", "reasonaqa"])
def test_a_file_that_gives_nothing_is_named(files, which):
    openaqa, (train,) = files
    empty = openaqa if which == "openaqa" else train.with_name("more.json")
    empty.write_text("[]")
    with pytest.raises(ValueError, match=rf"^{which}: '{empty}' has no records"):
        mix((openaqa, [train] if which == "openaqa" else [train, empty]), 20)


def test_questions_without_a_task_are_warned_of(files, monkeypatch):
    said = []
    monkeypatch.setattr(openreasonaqa_module.logger, "warning", said.append)
    mix(files, 20)
    assert not said
    items = json.loads(files[0].read_text())
    for item in items[:3]:
        item["task"] = ""
    files[0].write_text(json.dumps(items))
    mix(files, 20)
    assert len(said) == 1 and "3 records of" in said[0] and "have no task" in said[0] and "caption rule" in said[0]


def test_what_is_left_out_is_counted(files):
    items = json.loads(files[0].read_text())
    items[0]["output"] = ""
    items[1]["output"] = items[2]["output"] = "It is unclear."
    files[0].write_text(json.dumps(items))
    ours = mix(files, 20, skip_unanswerable=True)
    openaqa = (
        "OpenAQA: 10 records in its files, skipped 1 with an empty answer, 2 whose answer states that there is none: 7"
    )
    reasonaqa = "ReasonAQA: 9 records in its files, skipped 2 on two clips, 0 with an empty answer: 7"
    list(ours.records())  # reads again
    for text in (ours.table(), coverage_table(ours.report["coverage"])):
        assert f"{openaqa} used" in text.splitlines() and f"{reasonaqa} used" in text.splitlines()
    assert sum(entry["read"] for entry in ours.report["table"]) == 14


def test_one_file_is_no_list_of_files(files):
    with pytest.raises(ValueError, match="expected a list of files"):
        OpenReasonAQA(files[0], files[1][0])


def test_files_that_change_in_between_are_an_error(files):
    ours = mix(files, 20)
    items = json.loads(files[0].read_text())
    for changed in (items[:-1], items + items):
        files[0].write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="the files have changed since they were counted"):
            list(ours.records())


# -- The cutoff ---------------------------------------------------------------------------------------------------


def test_rows_over_the_cutoff_are_counted_with_their_repeats(files):
    """With a tokenizer whose tokens are the bytes: the template is 33 of them, the end of text one."""
    plain = mix(files, 20)
    assert plain.report["over_cutoff"] is None and "over_cutoff" not in plain.report["table"][0]
    assert "over 108 tokens were not counted, as no tokenizer was passed" in plain.table()

    tokenizer = tiny_tokenizer().backend_tokenizer
    lengths = [33 + len(record["prompt"]) + len(record["answer"]) + 1 for record in plain.records()]
    assert len(PROMPT_TEMPLATE.format(prompt="")) == 33 and len(set(lengths)) > 5
    for cutoff in range(min(lengths) - 1, max(lengths) + 1):
        report = mix(files, 20, tokenizer=tokenizer, cutoff=cutoff).report
        over = sum(length > cutoff for length in lengths)
        assert report["over_cutoff"] == sum(entry["over_cutoff"] for entry in report["table"]) == over
    assert f"over {cutoff}" in report_table(report) and "not counted" not in report_table(report)


def test_a_tokenizer_from_a_folder(files, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenizer.backend_tokenizer.enable_truncation(10)
    counts = [
        mix(files, 20, tokenizer=given, cutoff=50).report["over_cutoff"]
        for given in (str(tmp_path / "tokenizer"), tmp_path / "tokenizer/tokenizer.json", tokenizer.backend_tokenizer)
    ]
    assert counts[0] == counts[1] == counts[2] > 0
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 10  # left as it was


@needs(NEOX)
def test_the_cutoff_of_ltu_with_the_real_tokenizer(files):
    """Answers of 60 to 110 words, so that some text has 108 tokens with its end, and some 109."""
    openaqa, (train,) = files
    items = json.loads(openaqa.read_text())
    closed = [item for item in items if item["task"] == "temporal"]
    long = [{**closed[0], "output": "A" + " dog" * count} for count in range(60, 110)]
    openaqa.write_text(json.dumps(closed + long))
    tokenizer = Tokenizer.from_file(str(NEOX))
    lengths = []
    for item in closed + long:
        text = f"### Instruction:\n{item['instruction']}\n\n### Response:\n{item['output']}<|endoftext|>"
        lengths.append(len(tokenizer.encode(text).ids))
    assert {108, 109} <= set(lengths)
    report = mix((openaqa, [train]), len(lengths), tokenizer=NEOX).report
    assert report["over_cutoff"] == sum(length > 108 for length in lengths) > 10


# -- Audio and folders --------------------------------------------------------------------------------------------


@pytest.fixture
def roots(tmp_path):
    """Audio of all records but o1, a closed question, and r0 and r6, a yes/no question and a detailed one."""
    for folder, count in (("o", 10), ("r", 7)):
        (tmp_path / folder).mkdir()
        for index in range(count):
            (tmp_path / folder / f"{folder}{index}.wav").touch()
    for missing in ("o/o1.wav", "r/r0.wav", "r/r6.wav"):
        (tmp_path / missing).unlink()
    return [("/there", str(tmp_path / "o")), ("AudioCapsLarger", str(tmp_path / "r"))]


def test_records_without_audio_are_left_out_before_drawing(files, roots):
    options = {"audio_roots": roots, "check_audio": True}
    ours = mix(files, 20, max_missing=0.2, **options)
    records = list(ours.records())
    assert len(records) == 20 and all(Path(record["audio"]).is_file() for record in records)
    assert ours.report["replacing"] == {"rows": 17, "distinct": 4, "times_at_least": 4, "times_at_most": 5}
    assert ours.report["coverage"]["missing"] == sum(entry["missing"] for entry in ours.report["table"]) == 3
    with pytest.raises(ValueError, match="3 of 17 records have no audio"):
        mix(files, 20, max_missing=0.1, **options)


def test_a_folder_is_built(files, roots, tmp_path, monkeypatch):
    out = tmp_path / "out"
    options = {"size": 20, "audio_roots": roots, "max_missing": 0.2, "closed_prefix": 0}
    report = build_openreasonaqa(*files, out, **options)
    assert sorted(path.name for path in out.iterdir()) == ["openreasonaqa.json", "part-00000.parquet", "summary.json"]
    assert json.loads((out / "openreasonaqa.json").read_text()) == report
    assert list(records_dataset(out)) == list(OpenReasonAQA(*files, **options).records())
    by_kind = read_summary(out)["by_kind"]
    assert {kind: by_kind[kind] for kind in ("closed", "caption")} == {"closed": 2, "caption": 1}
    assert by_kind["binary"] + by_kind["multiple_choice"] == 17 and len(by_kind) == 4
    shares = [float(line.split("%")[0].split()[-1]) for line in report_table(report).splitlines()[1:] if "%" in line]
    assert shares[-1] == 100 and sum(shares[:9]) == pytest.approx(100, abs=0.5)

    # Again: nothing is read; with another option all is done anew.
    monkeypatch.setattr(openreasonaqa_module, "read_openaqa", lambda *args, **kwargs: pytest.fail("read again"))
    assert build_openreasonaqa(*files, out, **options) == report
    with pytest.raises(pytest.fail.Exception, match="read again"):
        build_openreasonaqa(*files, out, **{**options, "size": 21})


def test_two_builds_of_one_folder_are_one(files, tmp_path, monkeypatch):
    """The second begins while the first writes; neither takes the other's temporary files for its own."""
    options, found, calls = {"size": 10, "check_audio": False}, [], []
    second = threading.Thread(target=lambda: found.append(build_openreasonaqa(*files, tmp_path / "out", **options)))

    def write(records, *arguments, **settings):
        calls.append(1)
        records = iter(records)
        first = next(records)  # the temporary files are there
        second.start()
        second.join(0.5)
        assert second.is_alive()
        return write_records(itertools.chain([first], records), *arguments, **settings)

    drawn = []
    draw = OpenReasonAQA._draw
    monkeypatch.setattr(OpenReasonAQA, "_draw", lambda self: drawn.append(1) or draw(self))
    monkeypatch.setattr(openreasonaqa_module, "write_records", write)
    report = build_openreasonaqa(*files, tmp_path / "out", **options)
    second.join()
    assert found == [report] and len(calls) == len(drawn) == 1
    names = ["openreasonaqa.json", "part-00000.parquet", "summary.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_a_broken_build_is_done_again(files, tmp_path, monkeypatch):
    out = tmp_path / "out"
    options = {"check_audio": False}
    build_openreasonaqa(*files, out, size=19, **options)
    whole = OpenReasonAQA.records

    def broken(self, folder):
        records = whole(self, folder)
        yield next(records)
        (Path(folder) / ".records-of-a-kill").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(OpenReasonAQA, "records", broken)
    with pytest.raises(KeyboardInterrupt):
        build_openreasonaqa(*files, out, size=20, **options)
    assert len(list(records_dataset(out))) == 19 and not (out / "openreasonaqa.json").exists()
    monkeypatch.setattr(OpenReasonAQA, "records", whole)
    assert build_openreasonaqa(*files, out, size=20, **options)["rows"] == len(list(records_dataset(out))) == 20
    assert sorted(path.name for path in out.iterdir()) == ["openreasonaqa.json", "part-00000.parquet", "summary.json"]


def test_the_command(command, files, roots, tmp_path, capsys):
    arguments = ["--openaqa", files[0], "--reasonaqa", *files[1], "--output", tmp_path / "out", "--size", 7]
    arguments += ["--reading", "replacement", "--caption-rule", "caption_words", "--max-missing", "0.2"]
    for source, target in roots:
        arguments += ["--audio-root", f"{source}={target}"]
    command("mix", *arguments)
    output = capsys.readouterr().out
    assert "OpenAQA closed: 4 read, 1,917,894 published" in output
    assert "7 rows of 4 distinct records of kind binary or multiple_choice: each is in the mix 1 to 2 times" in output
    assert len(list(records_dataset(tmp_path / "out"))) == 3 + 3 + 7
    last = next(line.split() for line in output.splitlines() if line.startswith("all  ") and "100.0%" in line)
    assert last == ["all", "17", "3", "3", "13", "100.0%"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--openaqa", "none.json"], "openaqa: there is no file 'none.json'"),
        (["--reasonaqa", "none.json"], "reasonaqa: there is no file 'none.json'"),
        (["--audio-root", "a=b=c"], "--audio-root: got 'a=b=c', in which several = could divide"),
        (["--tokenizer", "/none"], "tokenizer: got '/none'"),
        ([], "17 of 17 records have no audio file"),
    ],
)
def test_the_command_reports_what_is_wrong(command, files, tmp_path, changes, message):
    arguments = ["--openaqa", files[0], "--reasonaqa", *files[1], "--output", tmp_path / "out", *changes]
    command("mix", *arguments, error=f"^sam-alm: {message}")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_an_error(command, files, tmp_path):
    arguments = ["--openaqa", files[0], "--reasonaqa", *files[1], "--no-audio-check", "--output"]
    command("mix", *arguments, files[0], error=r"sam-alm: folder: .*openaqa\.json' is a file")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-00007.parquet").write_text("mine")
    message = r"sam-alm: folder: .*has part-00007\.parquet, which is not a shard of records"
    command("mix", *arguments, tmp_path / "out", error=message)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["part-00007.parquet"]
