"""Special tokens in the texts of records and tables: one rule, found before training, naming file and row."""

import json
import re

import datasets
import pyarrow
import pytest
import soundfile
from pyarrow import parquet
from tiny import tiny_batches, tiny_processor, tone

from sam_lab.data.plain_tables import read_table
from sam_lab.data.published import read_openaqa, read_reasonaqa
from sam_lab.data.records import write_records
from sam_lab.data.streams import RecordSource
from sam_lab.data.texts import text_problem
from sam_lab.training.features import CachedRows

END, AUDIO = "<|endoftext|>", "<|audio|>"
# Prompt, answer, and which of them is refused, if any.
RULE = [
    ("What?", "A dog.", None),
    (f"{AUDIO}What?", "A dog.", None),
    ("What |audio| <endoftext>?", "<A dog>", None),
    (f"What?{END}", "A dog.", f"{END} in the prompt"),
    ("<|padding|>", "A dog.", "<|padding|> in the prompt"),
    ("What?", f"A dog.{END}", f"{END} in the answer"),
    ("What?", f"{AUDIO} A dog.", f"{AUDIO} in the answer"),
    (f"{AUDIO}{AUDIO}", "A dog.", f"2 {AUDIO} in the prompt and 1 clip"),
    ("What does ### Response: mean?", "### Instruction: a", None),
    ("### Instruction: What? ### Response:", "A dog.", "both ### Instruction: and ### Response: in the prompt"),
]


@pytest.fixture
def folder(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(), 16000)
    return tmp_path


def records(folder, prompt, answer):
    row = {"audio": str(folder / "a.wav"), "prompt": "Why?", "answer": "So.", "source": "s", "kind": "other"}
    return [row, row, {**row, "prompt": prompt, "answer": answer}]


def openaqa(folder, prompt, answer):
    rows = [
        {"instruction": row["prompt"], "input": "", "audio_id": "a.wav", "dataset": "d", "output": row["answer"]}
        for row in records(folder, prompt, answer)
    ]
    (folder / "q.json").write_text(json.dumps(rows))
    return list(read_openaqa(folder / "q.json"))


def reasonaqa(folder, prompt, answer):
    keys = dict.fromkeys(("filepath2", "caption1", "caption2"), "")
    rows = [
        {
            **keys,
            "taskname": "t",
            "filepath1": "a.wav",
            "subtype": "s",
            "input": row["prompt"],
            "answer": row["answer"],
        }
        for row in records(folder, prompt, answer)
    ]
    (folder / "q.json").write_text(json.dumps(rows))
    return list(read_reasonaqa(folder / "q.json"))


def table(folder, prompt, answer, name="t.csv"):
    rows = [
        {"audio": "a.wav", **{key: row[key] for key in ("prompt", "answer")}}
        for row in records(folder, prompt, answer)
    ]
    if name.endswith("csv"):
        text = "audio,prompt,answer\n" + "".join(",".join(row.values()) + "\n" for row in rows)
        (folder / name).write_text(text)
    elif name.endswith("parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
    else:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_table(str(folder / name))


def shards(folder, prompt, answer, kind):
    rows = records(folder, prompt, answer)
    if kind == "dataset":
        source = datasets.Dataset.from_list(rows)
    elif kind == "stream":
        source = datasets.Dataset.from_list(rows).to_iterable_dataset()
    else:
        source = folder / f"r.{kind}"
        if kind == "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), source)
        else:
            source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RecordSource(source, 8, [END, "<|padding|>"])


READERS = {
    "openaqa": (openaqa, r"q\.json: record 3"),
    "reasonaqa": (reasonaqa, r"q\.json: record 3"),
    "records": (lambda *row: write_records(records(*row), row[0] / "written"), "records: number 3"),
    "csv": (table, r"t\.csv' has in row 3"),
    "jsonl": (lambda *row: table(*row, "t.jsonl"), r"t\.jsonl' has in row 3"),
    "parquet": (lambda *row: table(*row, "t.parquet"), r"t\.parquet' has in row 3"),
    "shard of parquet": (lambda *row: shards(*row, "parquet"), r"r\.parquet', row 3"),
    "shard of lines": (lambda *row: shards(*row, "jsonl"), r"r\.jsonl', line 3"),
    "dataset": (lambda *row: shards(*row, "dataset"), "the Dataset, row 3"),
    "stream": (lambda *row: shards(*row, "stream"), "the IterableDataset"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("prompt", "answer", "problem"), RULE)
def test_one_rule_for_all_that_is_read(folder, reader, prompt, answer, problem):
    read, where = READERS[reader]
    if reader == "reasonaqa" and problem is None:
        prompt, answer = prompt.lower(), answer.lower()
    if reader == "reasonaqa" and problem and "### " in problem:  # its texts are in lower case, and so no headings
        problem = None
    if problem is None:
        assert read(folder, prompt, answer)
        return
    with pytest.raises(ValueError, match=f"{where}.* has .*{re.escape(problem)}|{where} .*{re.escape(problem)}"):
        read(folder, prompt, answer)


def test_text_without_a_clip_has_no_mark():
    assert text_problem(f"{AUDIO}?", "a", has_audio=True) is None
    assert text_problem(f"{AUDIO}?", "a", has_audio=False).startswith(f"1 {AUDIO} in the prompt and 0 clip(s)")


def test_a_training_that_reads_such_a_record_does_not_start(folder):
    processor = tiny_processor()
    rows = [{**records(folder, f"What?{END}", "A dog.")[index // 99], "prompt": "x"} for index in range(200)]
    rows += records(folder, f"What?{END}", "A dog.")[2:]  # beyond those that are looked at first
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "r.parquet")
    with pytest.raises(ValueError, match=r"r\.parquet', row 201, .* special token .* in the prompt"):
        tiny_batches(folder / "r.parquet", processor, batch_size=2)
    with pytest.raises(ValueError, match=r"text: got the special token <\|endoftext\|> in .* at position 200"):
        CachedRows(datasets.Dataset.from_list(rows), processor)


def test_a_rendered_prompt_may_be_a_records():
    assert text_problem("### Instruction:\nWhat?\n\n### Response:\n", "A dog.", has_audio=True) is None


def test_a_class_is_an_answer(tmp_path):
    (tmp_path / f"a{END}").mkdir()
    soundfile.write(tmp_path / f"a{END}" / "a.wav", tone(), 16000)
    with pytest.raises(ValueError, match=r"source: the class 'a<\|endoftext\|>' of .* in the answer"):
        read_table(str(tmp_path))
