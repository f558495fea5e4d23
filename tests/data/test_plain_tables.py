"""Plain tables and folders of audio as training rows."""

import gzip
import json
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
import soundfile

from processing_sam import load_audio
from sam_lab.common.prompts import DEFAULT_PROMPT
from sam_lab.data import plain_tables as plain_tables_module
from sam_lab.data.plain_tables import read_table, table_records
from sam_lab.data.undecoded import undecoded

CLIPS = Path(__file__).resolve().parents[2] / "examples" / "audio"


@pytest.fixture
def folder(tmp_path):
    """Two clips in a folder."""
    for name in ("one.wav", "two.wav"):
        soundfile.write(tmp_path / name, np.random.default_rng(0).uniform(-0.1, 0.1, 8000), 16000)
    return tmp_path


def test_a_csv_file_with_paths_beside_it(folder):
    (folder / "table.csv").write_text("file,question,caption,more\none.wav,Which?,A one.,x\ntwo.wav,What?,2,y\n")
    table = read_table(str(folder / "table.csv"))
    assert table.column_names == ["audio", "prompt", "answer"]
    assert table[0] == {"audio": str(folder / "one.wav"), "prompt": "Which?", "answer": "A one."}
    assert table[1]["prompt"] == "What?"


def test_a_number_as_an_answer_is_text(folder):
    (folder / "table.csv").write_text("audio,answer\none.wav,1\ntwo.wav,2\n")
    assert read_table(str(folder / "table.csv"))["answer"][:] == ["1", "2"]


@pytest.mark.parametrize("lines", [False, True], ids=["json", "jsonl"])
def test_a_json_file_without_prompts(folder, lines):
    items = [{"audio": str(folder / "one.wav"), "answer": "One."}, {"audio": "two.wav", "answer": "Two."}]
    path = folder / ("table.jsonl" if lines else "table.json")
    path.write_text("\n".join(map(json.dumps, items)) if lines else json.dumps(items))
    table = read_table(str(path), prompt="Say it.")
    assert table["audio"][:] == [str(folder / "one.wav"), str(folder / "two.wav")]  # an absolute path stays
    assert table["prompt"][:] == ["Say it."] * 2


def test_an_audio_folder_with_its_metadata(folder):
    (folder / "metadata.csv").write_text("file_name,text\none.wav,A one.\ntwo.wav,A two.\n")
    table = read_table(str(folder))
    assert sorted(table["answer"][:]) == ["A one.", "A two."]
    assert set(table["prompt"][:]) == {DEFAULT_PROMPT}
    by_answer = {row["answer"]: load_audio(row["audio"]) for row in table}
    assert np.array_equal(by_answer["A one."], load_audio(str(folder / "one.wav")))


def test_a_folder_for_each_class(tmp_path):
    for name in ("church_bells", "dog"):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / f"{name}.wav", np.full(800, 0.1 if name == "dog" else 0.2), 16000)
    table = read_table(str(tmp_path))
    level = {row["answer"]: load_audio(row["audio"]).mean() for row in table}
    assert level == pytest.approx({"church bells": 0.2, "dog": 0.1}, abs=1e-3)


def test_a_dataset_with_an_audio_column_and_classes(monkeypatch):
    features = datasets.Features(
        {
            "file": datasets.Audio(),
            "label": datasets.ClassLabel(names=["car_horn", "dog"]),
            "fold": datasets.Value("int8"),
        }
    )
    clip = CLIPS / "dog.ogg"
    stored = [{"file": {"bytes": clip.read_bytes(), "path": None}, "label": 1, "fold": 2}]
    stored.append({"file": {"bytes": None, "path": str(clip)}, "label": 0, "fold": 1})
    schema = pyarrow.schema(
        {"file": pyarrow.struct({"bytes": "binary", "path": "string"}), "label": "int64", "fold": "int8"}
    )
    on_the_hub = datasets.Dataset(pyarrow.Table.from_pylist(stored, schema)).cast(features)
    found = {("someone/clips", "test"): undecoded(on_the_hub)}
    monkeypatch.setattr(plain_tables_module, "load_undecoded", lambda name, split: found[name, split])
    table = read_table("someone/clips", "test")
    assert table["answer"][:] == ["dog", "car horn"]
    assert table.column_names == ["audio", "prompt", "answer"]
    for row in table:
        assert np.array_equal(load_audio(row["audio"]), load_audio(str(clip)))


def test_a_folder_of_splits(tmp_path):
    (tmp_path / "train" / "train").mkdir(parents=True)  # ESC-50 has a class of this name
    (tmp_path / "train" / "dog").mkdir()
    (tmp_path / "validation").mkdir()
    for name in ("train/train/one.wav", "train/dog/two.WAV", "validation/three.wav"):
        soundfile.write(tmp_path / name, np.zeros(800), 16000)
    (tmp_path / "train" / "dog" / "notes.txt").write_text("no sound")
    (tmp_path / "validation" / "metadata.jsonl").write_text('{"file_name": "three.wav", "caption": "Three."}')
    assert read_table(str(tmp_path))["answer"][:] == ["dog", "train"]
    assert read_table(str(tmp_path / "train"))["answer"][:] == ["dog", "train"]
    validation = read_table(str(tmp_path), "validation")
    assert validation["answer"][:] == ["Three."]
    assert validation["audio"][:] == [str(tmp_path / "validation" / "three.wav")]


def test_what_is_missing_is_named(folder):
    with pytest.raises(ValueError, match=r"neither a metadata\.csv or metadata\.jsonl nor subfolders with audio"):
        read_table(str(folder))  # its clips are of no class
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv"):
        read_table(str(folder / "nothing.csv"))
    (folder / "table.csv").write_text("sound,answer\none.wav,1\n")
    with pytest.raises(ValueError, match="columns sound, answer, expected one of audio, file, path, file_name for"):
        read_table(str(folder / "table.csv"))
    (folder / "table.csv").write_text("audio,said\none.wav,1\n")
    with pytest.raises(ValueError, match="expected one of answer, caption, text, label for the answer"):
        read_table(str(folder / "table.csv"))


def test_a_table_as_records(folder):
    (folder / "table.csv").write_text("audio,question,answer\none.wav,Which?,A one.\n")
    (record,) = table_records(read_table(str(folder / "table.csv")), "mine", "caption")
    clip = str(folder / "one.wav")
    assert record == {"audio": clip, "prompt": "Which?", "answer": "A one.", "source": "mine", "kind": "caption"}
    undecoded = {"audio": {"bytes": None, "path": clip}, "prompt": "Which?", "answer": "A one."}
    assert next(table_records([undecoded], "mine", "caption")) == record
    with pytest.raises(ValueError, match="audio of row 2 is dict, expected a path"):
        list(table_records([undecoded, {**undecoded, "audio": {"bytes": b"RIFF", "path": "one.wav"}}], "mine"))


# -- Cells --------------------------------------------------------------------------------------------------------


def table_of(folder, text, name="table.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(str(path))


@pytest.mark.parametrize("cell", ["NA", "None", "null", "nan", "007", "1.0", " a dog ", "1e5", "True"])
def test_cells_of_csv_are_text_as_they_are_written(folder, cell):
    assert table_of(folder, f"audio,answer\none.wav,{cell}\ntwo.wav,3\n")["answer"][:] == [cell, "3"]
    assert table_of(folder, f"audio,prompt,answer\none.wav,{cell},x\n")["prompt"][:] == [cell]
    assert table_of(folder, f"audio,answer\n{cell},x\n")["audio"][:] == [str(folder / cell)]


def test_numbers_of_json_are_text(folder):
    items = [{"audio": 1001, "answer": 7}, {"audio": "one.wav", "question": 3, "answer": 1.5}]
    table = table_of(folder, json.dumps(items), "table.json")
    assert table["audio"][:] == [str(folder / "1001"), str(folder / "one.wav")]
    assert table["answer"][:] == ["7", "1.5"]
    assert table["prompt"][:] == [DEFAULT_PROMPT, "3"]  # a column that only some rows have


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("table.csv", "audio,answer\none.wav,dog\none.wav,\none.wav,  \n", "''"),
        ("table.csv", "answer,audio\ndog,one.wav\n ,one.wav\n,\n,one.wav\n", "' '"),
        ("table.tsv", "audio\tanswer\none.wav\tdog\n\none.wav\none.wav\t\n", "None"),
        ("table.json", '[{"audio": "x", "answer": "y"}, {"audio": "x"}, {"audio": "x", "answer": " "}]', "None"),
        ("table.jsonl", '{"audio": "x", "answer": 1}\n' + '{"audio": "x", "answer": NaN}\n' * 2, "nan"),
        ("table.json", '[{"audio": "x", "answer": "y"}' + ', {"audio": "x", "answer": ["y"]}' * 2 + "]", "['y']"),
        ("table.json", '[{"audio": "x", "answer": "y"}' + ', {"audio": "x", "answer": true}' * 2 + "]", "True"),
        (
            "table.json",
            '[{"audio": "x", "answer": "y"}' + ', {"audio": "x", "answer": "\\ud83d"}' * 2 + "]",
            "'.ud83d'",
        ),
    ],
)
def test_rows_without_an_answer_are_an_error(folder, name, text, value):
    message = rf"{name}' has 2 of 3 rows without an answer .* 'answer', the first is row 2 \({value}\)"
    with pytest.raises(ValueError, match=message.replace("['y']", r"\['y'\]")) as error:
        table_of(folder, text, name)
    assert str(error.value).startswith("source: ")


def test_a_blank_prompt_is_the_default(folder):
    table = table_of(folder, "audio,prompt,answer\none.wav,What?,dog\none.wav,,cat\none.wav, ,cow\n")
    assert table["prompt"][:] == ["What?", DEFAULT_PROMPT, DEFAULT_PROMPT]


def test_audio_is_blank_in_every_row_or_in_none(folder):
    """A table of text is one thing, a row that lost its path another."""
    assert table_of(folder, "audio,answer\n,dog\n ,cat\n")["audio"][:] == [None, None]
    assert table_of(folder, '[{"audio": null, "answer": "x"}]', "t.json")["audio"][:] == [None]
    for name, text in (
        ("t.csv", "audio,answer\none.wav,dog\n,cat\none.wav,cow\n ,x\n"),
        ("t.jsonl", '{"audio": "x", "answer": "y"}\n{"audio": null, "answer": "y"}\n' * 2),
    ):
        with pytest.raises(ValueError, match="2 of 4 rows without audio in the column 'audio', the first is row 2"):
            table_of(folder, text, name)


def test_audio_that_is_no_path_is_an_error(folder):
    with pytest.raises(ValueError, match=r"has \['a'\] as audio in row 1, expected text or a number"):
        table_of(folder, '[{"audio": ["a"], "answer": "x"}]', "t.json")


@pytest.mark.parametrize("rows", ["one.wav,x,y\ntwo.wav,a\n", "two.wav,a\none.wav,x,y\n", "two.wav,a\none.wav,x,\n"])
def test_a_line_with_too_many_fields_is_an_error(folder, rows):
    number = 1 if rows.startswith("one") else 2
    with pytest.raises(ValueError, match=rf"line {number + 1}: row {number} has 3 fields, expected the header's 2"):
        table_of(folder, "audio,answer\n" + rows)


def test_quoted_fields_may_hold_commas_and_lines(folder):
    table = table_of(folder, '\ufeffaudio,answer\r\none.wav,"a dog, a ""cat""\nand é"\r\n')
    assert table["answer"][:] == ['a dog, a "cat"\nand é']
    with pytest.raises(ValueError, match=r"source: .*table\.csv', line 3: unexpected end of data"):
        table_of(folder, 'audio,answer\none.wav,"a dog\ntwo.wav,x\n')


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "t.csv", "is empty, expected columns and rows"),
        ("[]", "t.json", "is empty, expected columns and rows"),
        ("", "t.jsonl", "the file is empty"),
        ("audio,answer\n", "t.csv", "has columns but no rows"),
        (
            "audio,answer\none.wav,x\none.wav,caf\xe9\n".encode("latin-1"),
            "t.csv",
            "line 3: not UTF-8 .*save the file",
        ),
        ("audio,answer,audio\na,b,c\n", "t.csv", "the column 'audio' occurs twice"),
        (
            "audio,answer\n",
            "t.xlsx",
            r"t\.xlsx', expected one with the suffix \.csv, \.tsv, \.json, \.jsonl, \.parquet",
        ),
        (b"\x1f\x8b broken", "t.csv.gz", r"t\.csv\.gz'"),
        ("no parquet", "t.parquet", r"t\.parquet' cannot be loaded"),
    ],
)
def test_a_file_that_is_no_table_is_one_clear_error(folder, text, name, message):
    with pytest.raises(ValueError, match=message) as error:
        table_of(folder, text, name)
    assert str(error.value).startswith("source: ") and name in str(error.value)


def test_what_is_not_there_is_said(folder, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for name in ("none.csv", "none.CSV", "none.jsonl.gz", "none.parquet", "none"):
        with pytest.raises(FileNotFoundError, match=r"^source: .*none"):
            read_table(str(folder / name))


def test_every_form_of_table(folder, monkeypatch):
    expected = [{"audio": str(folder / "one.wav"), "prompt": DEFAULT_PROMPT, "answer": "dog"}]
    items = [{"audio": "one.wav", "answer": "dog"}]
    comma, line = b"audio,answer\none.wav,dog\n", json.dumps(items[0]).encode()
    for name, content in (
        ("t.CSV", comma),
        ("t.tsv", comma.replace(b",", b"\t")),
        ("t.csv.gz", gzip.compress(comma)),
        ("t.Tsv.GZ", gzip.compress(comma.replace(b",", b"\t"))),
        ("t.JSONL", line),
        ("t.jsonl.gz", gzip.compress(line)),
        ("t.json.gz", gzip.compress(b"[" + line + b"]")),
    ):
        assert table_of(folder, content, name).to_list() == expected, name
    datasets.Dataset.from_list(items).to_parquet(folder / "t.parquet")
    assert read_table(str(folder / "t.parquet")).to_list() == expected
    monkeypatch.setenv("HOME", str(folder))
    assert read_table("~/t.CSV").to_list() == expected
    assert table_of(folder, b"audio,answer\n~/one.wav,dog\n").to_list() == expected
    (folder / "Metadata.CSV").write_bytes(comma.replace(b"audio", b"file_name"))
    assert read_table(str(folder)).to_list() == expected


@pytest.mark.parametrize("name", ["t[1]", "t*", "t?", "[a-z]"])
def test_file_names_are_no_patterns(folder, name):
    """Each has a neighbour that the pattern would match."""
    inner = folder / f"{name} in"
    inner.mkdir()
    for other, answer in ((name, "ours"), ("t1", "other"), ("ta", "other"), ("a", "other")):
        table_of(inner, f"audio,answer\none.wav,{answer}\n", f"{other}.csv")
        table = datasets.Dataset.from_list([{"audio": "one.wav", "answer": answer}])
        table.to_parquet(inner / f"{other}.parquet")
    for suffix in (".csv", ".parquet"):
        assert read_table(str(inner / f"{name}{suffix}"))["answer"][:] == ["ours"]


def test_many_rows_keep_their_order(folder, monkeypatch):
    monkeypatch.setattr(plain_tables_module, "CHUNK", 3)
    table = table_of(folder, "audio,answer\n" + "".join(f"one.wav,{index}\n" for index in range(10)))
    assert table["answer"][:] == [str(index) for index in range(10)]


@pytest.mark.parametrize("wrong", [-1, None])
def test_a_row_without_a_label_is_an_error(monkeypatch, wrong):
    features = {"audio": datasets.Value("string"), "label": datasets.ClassLabel(names=["cat", "dog"])}
    columns = {"audio": ["a", "b", "c", "d"], "label": [0, wrong, 1, wrong]}
    stored = datasets.Dataset.from_dict(columns, datasets.Features(features))
    monkeypatch.setattr(plain_tables_module, "load_undecoded", lambda name, split: undecoded(stored))
    with pytest.raises(ValueError, match=rf"2 of 4 rows without a label .* row 2 \({wrong}\); .*filter the rows out"):
        read_table("someone/clips")
    monkeypatch.setattr(plain_tables_module, "load_undecoded", lambda name, split: undecoded(stored.select([0, 2])))
    assert read_table("someone/clips")["answer"][:] == ["cat", "dog"]


def test_columns_of_a_dataset_are_checked_alike(monkeypatch):
    def read(**columns):
        monkeypatch.setattr(
            plain_tables_module, "load_undecoded", lambda name, split: undecoded(datasets.Dataset.from_dict(columns))
        )
        return read_table("someone/clips").to_list()

    row = {"audio": "1001", "prompt": DEFAULT_PROMPT, "answer": "7"}
    assert read(audio=[1001], prompt=[""], answer=[7]) == [row]
    assert read(audio=[None], answer=["x"]) == [{**row, "audio": None, "answer": "x"}]
    with pytest.raises(ValueError, match="1 of 2 rows without audio"):
        read(audio=["a", None], answer=["x", "y"])
    with pytest.raises(ValueError, match=r"1 of 1 rows without an answer .*\(\['x'\]\)"):
        read(audio=["a"], answer=[["x"]])
    with pytest.raises(ValueError, match="has columns but no rows"):
        read(audio=[], answer=[])


# -- Folders ------------------------------------------------------------------------------------------------------


@pytest.fixture
def warnings(monkeypatch):
    """What is warned of."""
    said = []
    monkeypatch.setattr(plain_tables_module.logger, "warning", said.append)
    return said


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def answers(folder, split="train"):
    return {str(Path(row["audio"]).relative_to(folder)): row["answer"] for row in read_table(str(folder), split)}


@pytest.mark.parametrize("split", ["validation", "valid"])
def test_a_split_that_is_not_there_is_an_error(tmp_path, split):
    touch(tmp_path, "train/dog/a.wav", "test/dog/b.wav")
    assert answers(tmp_path, "test") == {"test/dog/b.wav": "dog"}
    with pytest.raises(ValueError, match=rf"has the splits test, train, expected '{split}' among them"):
        read_table(str(tmp_path), split)
    touch(tmp_path, "dev/a.wav")  # a split without classes is none of those of its own name
    with pytest.raises(ValueError, match="neither a metadata"):
        read_table(str(tmp_path), "dev")


def test_a_class_may_be_named_as_a_split(tmp_path):
    touch(tmp_path, "train/a.wav", "test/b.wav", "dog/c.wav")
    expected = {"dog/c.wav": "dog", "test/b.wav": "test", "train/a.wav": "train"}
    assert answers(tmp_path) == answers(tmp_path, "validation") == expected


def test_the_class_is_the_first_folder(tmp_path, warnings):
    touch(tmp_path, "dog/fold1/a.wav", "dog/b.wav", "church_bells/x/y/c.flac")
    assert answers(tmp_path) == {
        "church_bells/x/y/c.flac": "church bells",
        "dog/b.wav": "dog",
        "dog/fold1/a.wav": "dog",
    }
    assert not warnings


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path, warnings):
    touch(tmp_path, "elsewhere/b.wav", "in/dog/a.wav", "in/cat/c.wav")
    (tmp_path / "in" / "cow").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "dog" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "dog" / "again").symlink_to(tmp_path / "in" / "dog")
    expected = {"cat/c.wav": "cat", "cow/b.wav": "cow", "dog/a.wav": "dog", "dog/more/b.wav": "dog"}
    assert answers(tmp_path / "in") == expected and not warnings


def test_what_is_hidden_is_no_audio(tmp_path, warnings):
    touch(tmp_path, "dog/a.wav", "dog/._a.wav", "dog/.cache/b.wav", "__MACOSX/dog/._a.wav", ".git/x.wav", ".DS_Store")
    touch(tmp_path, "dog/__MACOSX/c.wav")
    assert answers(tmp_path) == {"dog/a.wav": "dog"} and not warnings


def test_files_that_are_not_taken_are_counted(tmp_path, warnings):
    touch(tmp_path, "dog/a.wav", "dog/b.MP4", "dog/notes", "cow/a.mp4", "cow/b.aac", "root.wav", "README.md")
    (tmp_path / "pig").mkdir()
    assert answers(tmp_path) == {"dog/a.wav": "dog"}
    assert len(warnings) == 1
    assert f"6 files of '{tmp_path}' are skipped" in warnings[0]
    assert (
        "(1 .aac, 1 .md outside of the classes, 2 .mp4, 1 .wav outside of the classes, 1 without suffix)"
        in warnings[0]
    )
    assert "Classes without audio: cow, pig." in warnings[0]


def test_a_name_that_no_table_can_hold_is_refused_by_name(tmp_path):
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "caf\u00e9\n.wav").touch()
    assert read_table(str(tmp_path))["audio"][:] == [str(tmp_path / "dog" / "caf\u00e9\n.wav")]
    Path(os.fsdecode(os.fsencode(tmp_path / "dog") + b"/odd-\xff.wav")).touch()
    with pytest.raises(ValueError, match=r"odd-\\udcff\.wav' has a name that is not UTF-8, .* rename it"):
        read_table(str(tmp_path))
    with pytest.raises(ValueError, match=r"odd-\\udcff\.csv' is a name that is not UTF-8"):
        read_table("odd-\udcff.csv")
