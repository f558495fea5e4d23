"""The data sources of a recipe: shards that nobody converted, a mix drawn when the run begins, what is missing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import yaml

from sam_lab.data import openreasonaqa as openreasonaqa_module
from sam_lab.data import streams as streams_module
from sam_lab.data.records import write_records
from sam_lab.data.streams import RecordSource
from sam_lab.training.curriculum import claim, claim_inputs, run_recipe
from sam_lab.training.plan import plan, plan_text
from sam_lab.training.recipe import load_recipe
from sam_lab.training.sources import as_table, count_rows, prepare_data, validation_rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def noises(tmp_path):
    """Eight records of four noises, as shards of JSON lines, as one file of Parquet, and with the audio inside it."""
    records = []
    for index in range(8):
        path = tmp_path / f"{index % 4}.wav"
        soundfile.write(path, np.random.default_rng(index % 4).uniform(-0.1, 0.1, 4000), 16000)
        records.append({"audio": str(path), "prompt": "What?", "answer": f"Noise {index}"})
    (tmp_path / "lines").mkdir()
    for number, part in enumerate((records[:5], records[5:])):
        text = "\n".join(json.dumps(record) for record in part)
        (tmp_path / "lines" / f"part-{number}.jsonl").write_text(text)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "rows.parquet")
    inside = [{**row, "audio": {"bytes": Path(row["audio"]).read_bytes(), "path": "x.wav"}} for row in records]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(inside), tmp_path / "inside.parquet")
    return tmp_path


def toy(folder, path, *overrides, format="shards"):
    data = [f"data.{name}={{path: {path}, format: {format}}}" for name in ("classification", "closed", "mix")]
    return load_recipe("toy", [f"model={ROOT / 'examples/sam-tiny'}", f"data_root={folder}", *data, *overrides])


@pytest.mark.parametrize("path", ["lines", "rows.parquet", "inside.parquet"])
def test_shards_are_counted_looked_through_and_drawn_from(noises, path, capsys):
    recipe = toy(noises, path)
    sources = prepare_data(recipe, noises / "run", ["mix"])
    said = "its shards contain the audio" if path == "inside.parquet" else "the audio of 8 of 8 records is present"
    assert f"mix: {said}" in capsys.readouterr().out
    assert sources == {"mix": noises / path} and count_rows(sources["mix"]) == 8
    drawn = validation_rows(recipe, sources["mix"])
    assert len(drawn) == recipe.evaluation_rows == 4
    assert set(drawn["answer"]) < set(as_table(sources["mix"])["answer"]) == {f"Noise {index}" for index in range(8)}
    assert [row["steps"] for row in plan(recipe)] == [4, 4, 2, 2]


@pytest.mark.slow
def test_a_recipe_trains_on_shards_and_knows_them_again(noises):
    recipe = toy(noises, "lines")
    last = run_recipe(recipe, noises / "run", stage=1)
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4]
    sources = prepare_data(recipe, noises / "run", ["classification"])
    claim_inputs(recipe, noises / "run", sources)
    with open(noises / "lines" / "part-1.jsonl", "a") as file:
        file.write("\n" + json.dumps({"audio": str(noises / "0.wav"), "prompt": "What?", "answer": "More"}))
    assert count_rows(noises / "lines") == 9  # no count of before
    with pytest.raises(ValueError, match=r"started with other contents of data\.classification"):
        claim_inputs(recipe, noises / "run", sources)


def test_shards_of_the_same_size_are_other_rows(noises):
    recipe, sources = toy(noises, "lines"), {"mix": noises / "lines"}
    (noises / "run").mkdir()
    claim_inputs(recipe, noises / "run", sources)
    shard = noises / "lines" / "part-0.jsonl"
    shard.write_text(shard.read_text().replace("Noise 1", "Noise 9"))
    with pytest.raises(ValueError, match=r"started with other contents of data\.mix"):
        claim_inputs(recipe, noises / "run", sources)


@pytest.mark.slow
def test_a_change_within_large_shards_is_found(noises):
    recipe = toy(noises, "lines")
    rows = [{"audio": None, "prompt": "What?", "answer": f"Noise {index:06d}"} for index in range(60_000)]
    for name in ("big.jsonl", "big.parquet"):

        def write(rows, path=noises / name):
            if path.suffix == ".jsonl":
                path.write_text("\n".join(json.dumps(row) for row in rows))
            else:
                pyarrow.parquet.write_table(
                    pyarrow.Table.from_pylist(rows), path, row_group_size=500, compression="none"
                )

        sources, run = {"mix": noises / name}, noises / f"run-{name}"
        run.mkdir()
        write(rows)
        claim_inputs(recipe, run, sources)
        claim_inputs(recipe, run, sources)
        assert (noises / name).stat().st_size > 2 << 20 or name == "big.parquet"
        write([*rows[:30_000], rows[30_001], rows[30_000], *rows[30_002:]])
        with pytest.raises(ValueError, match=r"started with other contents of data\.mix"):
            claim_inputs(recipe, run, sources)


@pytest.mark.parametrize("kind", ["openaqa", "records", "lines", "rows.parquet", "table.csv"])
def test_a_run_goes_on_where_its_rows_have_moved_but_with_no_others(noises, kind):
    """As `data_root` and `audio_roots` may change; the clips lie elsewhere then, under the same names."""

    def rows_in(folder, answers, clip="{}.wav"):
        folder.mkdir()
        for index in range(4):
            shutil.copy(noises / f"{index}.wav", folder)
        rows = [
            {"audio": str(folder / clip.format(index)), "prompt": "What?", "answer": answers.format(index)}
            for index in range(4)
        ]
        if kind == "openaqa":
            data = [{**openaqa(index, "What?", True), "output": answers.format(index)} for index in range(4)]
            for index, row in enumerate(data):
                row["audio_id"] = "/there/" + clip.format(index)
            (folder / "o.json").write_text(json.dumps(data))
            return toy(folder, "o.json", f"audio_roots=['/there={folder}']", format="openaqa")
        if kind == "records":
            write_records([{**row, "source": "s", "kind": "closed"} for row in rows], folder / "r")
            return toy(folder, "r", format="records")
        if kind == "lines":
            (folder / "l.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
            return toy(folder, "l.jsonl")
        if kind == "rows.parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "p.parquet")
            return toy(folder, "p.parquet")
        lines = ["audio,prompt,answer", *(f"{row['audio']},{row['prompt']},{row['answer']}" for row in rows)]
        (folder / "t.csv").write_text("\n".join(lines))
        return toy(folder, "t.csv", format="table")

    run = noises / "run"
    recipe = rows_in(noises / "a", "A dog {}")
    claim(recipe, run)
    claim_inputs(recipe, run, prepare_data(recipe, run, ["mix"]))
    moved = rows_in(noises / "b", "A dog {}")
    claim(moved, run)
    claim_inputs(moved, run, prepare_data(moved, run, ["mix"]))
    for others in (rows_in(noises / "c", "A cat {}"), rows_in(noises / "d", "A dog {}", "0.wav")):
        with pytest.raises(ValueError, match=r"started with other contents of data\.mix"):
            claim_inputs(others, run, prepare_data(others, run, ["mix"]))


@pytest.mark.parametrize("path", ["lines", "rows.parquet", "inside.parquet", "groups.parquet"])
def test_records_are_picked_without_the_others(noises, path, monkeypatch):
    rows = pyarrow.parquet.read_table(noises / "inside.parquet")
    pyarrow.parquet.write_table(rows, noises / "groups.parquet", row_group_size=3)
    source = RecordSource(noises / path, 1)
    expected, read = list(source.records()), []

    class Watched(pyarrow.parquet.ParquetFile):
        def read_row_group(self, group, **options):
            read.append(group)
            return super().read_row_group(group, **options)

        def iter_batches(self, *arguments, **options):
            pytest.fail("all of it is read")

    monkeypatch.setattr(streams_module.parquet, "ParquetFile", Watched)
    for places, groups in (
        ([0], [0]),
        ([7], [2]),
        ([6, 5, 3], [1, 2]),
        ([1, 1, 4], [0, 1]),
        (range(8), [0, 1, 2]),
        ([], []),
    ):
        read.clear()
        assert source.pick(places) == [expected[place] for place in sorted(set(places))]
        assert read == {"lines": [], "groups.parquet": groups}.get(path, [0] * bool(groups))


def test_a_record_that_cannot_be_learned_is_found_before_training(noises):
    """Beyond those that are looked at first, in lines that were counted before."""
    rows = [{"audio": None, "prompt": "What?", "answer": f"Noise {index}"} for index in range(200)]
    rows[-1]["answer"] = "Noise<|endoftext|>."
    (noises / "bad.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert count_rows(noises / "bad.jsonl") == 200
    with pytest.raises(ValueError, match=r"bad\.jsonl', line 200, .* the special token <\|endoftext\|>"):
        run_recipe(toy(noises, "bad.jsonl"), noises / "run", stage=1)
    assert not (noises / "run" / "stage-1").exists()


def test_shards_with_room_for_audio_may_have_paths_alone(noises, capsys):
    rows = pyarrow.parquet.read_table(noises / "inside.parquet").to_pylist()
    for row in rows[4:]:
        row["audio"] = {"bytes": None, "path": "/nowhere/x.wav"}
    rows.append({"audio": None, "prompt": "What?", "answer": "Nothing"})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), noises / "some.parquet")
    with pytest.raises(ValueError, match=r"data\.mix: .*audio of 4 of 9 .*there is no file '/nowhere/x\.wav'"):
        prepare_data(toy(noises, "some.parquet"), noises / "run", ["mix"])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*rows[:4], rows[-1]]), noises / "text.parquet")
    prepare_data(toy(noises, "text.parquet"), noises / "run", ["mix"])
    assert "the audio of 5 of 5 records is present" in capsys.readouterr().out  # looked through: one row has no bytes
    for row in rows[:4]:
        row["audio"]["path"] = None  # as many without a path as without bytes
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:8]), noises / "some.parquet")
    with pytest.raises(ValueError, match=r"data\.mix: .*audio of 4 of 8 "):
        prepare_data(toy(noises, "some.parquet"), noises / "run", ["mix"])
    audio = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("audio", audio), ("prompt", pyarrow.string()), ("answer", pyarrow.string())])
    table = pyarrow.Table.from_pylist([*rows[:4], rows[-1]], schema)
    pyarrow.parquet.write_table(table, noises / "no_paths.parquet")
    prepare_data(toy(noises, "no_paths.parquet"), noises / "run", ["mix"])
    assert "its shards contain the audio" in capsys.readouterr().out


def test_a_shard_without_rows_may_lack_columns(noises):
    (noises / "two").mkdir()
    shutil.copy(noises / "inside.parquet", noises / "two")
    pyarrow.parquet.write_table(pyarrow.table({}), noises / "two" / "empty.parquet")
    recipe = toy(noises, "two")
    sources = prepare_data(recipe, noises / "run", ["mix"])
    (noises / "run").mkdir(exist_ok=True)
    claim_inputs(recipe, noises / "run", sources)
    assert count_rows(sources["mix"]) == 8 and len(validation_rows(recipe, sources["mix"])) == 4


def test_lines_are_counted_once_until_they_change(noises, monkeypatch):
    read, parse = [], streams_module._parse
    monkeypatch.setattr(streams_module, "_parse", lambda line, where: read.append(where) or parse(line, where))
    assert count_rows(noises / "lines") == count_rows(noises / "lines") == 8
    assert len(read) == 8 + 2  # and the first one each time, to look at it
    with open(noises / "lines" / "part-0.jsonl", "a") as file:
        file.write("\n" + json.dumps({"audio": None, "prompt": "What?", "answer": "More"}))
    assert count_rows(noises / "lines") == 9


@pytest.mark.slow
def test_shards_held_as_a_table_keep_their_sources(noises):
    rows = [json.loads(line) for line in (noises / "lines" / "part-0.jsonl").read_text().splitlines()]
    rows[0]["source"] = "birds"
    (noises / "own.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    recipe = toy(noises, "own.jsonl", "cache_features=true")
    run_recipe(recipe, noises / "run", stage=1)
    read = json.loads((noises / "run" / "stage-1" / "finished.json").read_text())["read"]
    assert {name: row["seen"] for name, row in read.items()} == {"birds": 1, "classification": 4}


def test_audio_of_several_kinds_is_no_table(noises):
    rows = [json.loads(line) for line in (noises / "lines" / "part-0.jsonl").read_text().splitlines()]
    rows[0]["audio"] = {"path": rows[0]["audio"], "bytes": None}
    (noises / "both.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert count_rows(noises / "both.jsonl") == 5  # as a stream they are fine
    with pytest.raises(ValueError, match="have audio as dict and as str, expected one of them"):
        as_table(noises / "both.jsonl")


def test_audio_that_shards_miss_counts_as_broken(noises, capsys):
    (noises / "3.wav").unlink()  # of two records
    with pytest.raises(ValueError, match=r"data\.mix: .*audio of 2 of 8 .*\(mix: 2 of 8\).*there is no file .*3\.wav"):
        prepare_data(toy(noises, "lines"), noises / "run", ["mix"])
    prepare_data(toy(noises, "lines", "max_broken=0.25"), noises / "run", ["mix"])
    assert "mix: the audio of 6 of 8 records is present" in capsys.readouterr().out


def test_what_is_looked_for_is_judged_as_the_training_judges(noises, capsys):
    (noises / "3.wav").unlink()
    rows = [
        json.loads(line) for line in (noises / "lines" / "part-0.jsonl").read_text().splitlines()
    ]  # one is missing
    (noises / "few.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    prepare_data(toy(noises, "few.jsonl"), noises / "run", ["mix"])  # the share, and one more
    assert "4 of 5 records is present" in capsys.readouterr().out


def test_rows_to_evaluate_on_are_drawn_from_all_shards(noises):
    row = {"audio": str(noises / "0.wav"), "prompt": "What?"}
    text = "\n".join(json.dumps({**row, "answer": str(index)}) for index in range(30_000))
    (noises / "many.jsonl").write_text(text)
    recipe = toy(noises, "many.jsonl", "evaluation_rows=300")
    answers = [int(answer) for answer in validation_rows(recipe, noises / "many.jsonl")["answer"]]
    assert len(set(answers)) == 300 and sum(answer >= 20_000 for answer in answers) > 60
    assert answers != sorted(answers)


def test_other_files_beside_shards_change_nothing(noises):
    recipe = toy(noises, "lines")
    sources = {"mix": noises / "lines"}
    (noises / "run").mkdir()
    claim_inputs(recipe, noises / "run", sources)
    (noises / "lines" / "notes.txt").write_text("mine")
    (noises / "lines" / ".#lock").symlink_to("nowhere")
    claim_inputs(recipe, noises / "run", sources)
    assert count_rows(noises / "lines") == 8
    for text in ('{"about": "something else"}', "hello"):
        (noises / "lines" / "summary.json").write_text(text)
        with pytest.raises(ValueError, match=r"data\.mix: .*summary\.json' is not what write_records writes"):
            prepare_data(recipe, noises / "run", ["mix"])


def test_a_run_begun_before_data_had_more_keys_goes_on(noises):
    recipe = toy(noises, "lines")
    claim(recipe, noises / "run")
    path = noises / "run" / "recipe.yaml"
    there = yaml.safe_load(path.read_text())
    new = ("reasonaqa", "reading", "caption_rule")
    path.write_text(yaml.safe_dump({key: value for key, value in there.items() if not key.endswith(new)}))
    claim(recipe, noises / "run")
    claim(toy(noises, "lines", "data.mix.rows=5"), noises / "run")  # which is for planning alone
    with pytest.raises(ValueError, match=r"another recipe \(data\.mix\.reading: None there, 'replacement' now\)"):
        claim(toy(noises, "lines", "data.mix.reading=replacement"), noises / "run")


def openaqa(index, question, closed):
    task = "temporal" if closed else "open-ended question"
    row = {"instruction": question, "input": "", "audio_id": f"/there/{index % 4}.wav", "dataset": "vggsound_train"}
    return {**row, "task": task, "output": "a noise"}


def reasonaqa(index, question):
    row = {
        "taskname": "audiocaps",
        "filepath1": f"there/{index % 4}.wav",
        "filepath2": "",
        "caption1": "",
        "caption2": "",
    }
    return {**row, "input": question, "answer": "yes", "subtype": "ClothoAQA.json"}


@pytest.fixture
def published(noises):
    """Four closed and six open questions of OpenAQA, two yes/no questions of ReasonAQA."""
    rows = [openaqa(index, "Name it.", True) for index in range(4)]
    rows += [openaqa(index, "Describe the sound." if index < 2 else "Is it loud?", False) for index in range(6)]
    (noises / "openaqa.json").write_text(json.dumps(rows))
    (noises / "train.json").write_text(json.dumps([reasonaqa(index, f"is it {index}?") for index in range(2)]))
    return noises


def mixed(folder, reading, rule, rows):
    source = f"path: openaqa.json, format: openreasonaqa, reasonaqa: [train.json], reading: {reading}, "
    source += f"caption_rule: {rule}, rows: {rows}"
    roots = f"audio_roots=['/there={folder}', 'there={folder}']"
    return toy(folder, "rows.parquet", "data.mix={" + source + "}", roots)


@pytest.mark.parametrize(
    ("reading", "rule", "rows", "kinds"),
    [
        ("whole", "all_open", 9, {"closed": 4, "binary": 5}),  # the six open ones give way; nine are all there is
        ("whole", "caption_words", 10, {"closed": 4, "open": 4, "binary": 2}),  # two of the open ones give way
        ("replacement", "all_open", 9, {"closed": 4, "binary": 9}),  # nine are what replaces
    ],
)
def test_openreasonaqa_is_drawn_as_the_recipe_says(published, reading, rule, rows, kinds, capsys):
    recipe = mixed(published, reading, rule, rows)
    source = prepare_data(recipe, published / "run", ["mix"])["mix"]
    found = as_table(source)["kind"][:]
    assert {kind: found.count(kind) for kind in set(found)} == kinds
    report = json.loads((source / "openreasonaqa.json").read_text())
    assert (report["reading"], report["caption_rule"], report["rows"]) == (reading, rule, len(found))
    printed = capsys.readouterr().out
    assert "108" in printed and "binary" in printed  # the counts, and what LTU's cutoff would cut
    assert plan(recipe, stage=4)[0]["rows"] == (rows if reading == "whole" else None)
    assert plan(recipe, stage=4, output=published / "run")[0]["rows"] == len(found)


def test_reasonaqas_files_belong_to_the_mix_alone(published):
    with pytest.raises(ValueError, match=r"data\.mix\.reasonaqa: got \[\] with the format openreasonaqa"):
        toy(published, "rows.parquet", "data.mix.format=openreasonaqa")
    with pytest.raises(ValueError, match=r"data\.mix\.reasonaqa: got \['a'\] with the format shards"):
        toy(published, "rows.parquet", "data.mix.reasonaqa=[a]")
    (published / "train.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"data\.mix\.path: there is no file .*train\.json"):
        prepare_data(mixed(published, "whole", "all_open", 9), published / "run", ["mix"])


def test_a_mix_is_drawn_once_for_models_of_any_size(published, monkeypatch):
    """Which have the same tokenizer in folders of other names."""
    for name in ("small", "large"):
        shutil.copytree(ROOT / "examples" / "sam-tiny", published / name)
    monkeypatch.chdir(published)
    for name in ("small", "large"):
        recipe = replace(mixed(published, "whole", "all_open", 9), model=name, records=str(published / "shared"))
        prepare_data(recipe, published / name, ["mix"])
        monkeypatch.setattr(openreasonaqa_module, "read_openaqa", lambda *args, **kwargs: pytest.fail("read again"))
    words = published / "large" / "tokenizer.json"
    words.write_text(words.read_text() + "\n")
    with pytest.raises(pytest.fail.Exception, match="read again"):
        prepare_data(recipe, published / "large", ["mix"])


def test_audio_roots_belong_to_published_files(published):
    with pytest.raises(ValueError, match=r"data\.mix\.audio_roots: got \['/a=/b'\] with the format shards"):
        toy(published, "rows.parquet", "data.mix.audio_roots=['/a=/b']")


def test_what_is_missing_is_found_before_anything_is_converted(published):
    recipe = mixed(published, "whole", "all_open", 9)
    data = dict.fromkeys(("mix", "closed"))
    shutil.move(published / "rows.parquet", published / "elsewhere.parquet")
    with pytest.raises(FileNotFoundError, match=r"data\.closed\.path: there is no file or folder .*rows\.parquet"):
        prepare_data(recipe, published / "run", list(data))
    assert not (published / "run").exists()


def test_an_error_names_the_data_source(published):
    (published / "empty.json").write_text("[]")
    recipe = toy(published, "empty.json", format="openaqa")
    with pytest.raises(ValueError, match=r"data\.mix: .*empty\.json.*"):
        prepare_data(recipe, published / "run", ["mix"])
    with pytest.raises(ValueError, match=r"--audio-root: /there=/nowhere: there is no folder"):
        recipe = toy(published, "openaqa.json", "audio_roots=['/there=/nowhere']", format="openaqa")
        prepare_data(recipe, published / "run", ["mix"])
    with pytest.raises(ValueError, match=r"got 'nothing', expected FROM=TO"):
        prepare_data(toy(published, "lines", "audio_roots=[nothing]"), published / "run", ["mix"])


def test_a_plan_counts_published_files_that_are_there(published):
    recipe = toy(published, "openaqa.json", "data.mix.rows=5681708", format="openaqa")
    stages = plan(recipe)
    assert [stage["rows"] for stage in stages] == [10] * 4  # what is there, not what was published
    assert "counted, including those without audio" in plan_text(stages)
    rows = json.loads((published / "openaqa.json").read_text())
    rows[5]["output"] = "It cannot be determined from the audio."
    (published / "openaqa.json").write_text(json.dumps(rows))
    recipe = toy(published, "openaqa.json", "data.mix.skip_unanswerable=true", format="openaqa")
    assert [stage["rows"] for stage in plan(recipe)] == [10, 10, 10, 9]
    (published / "train.json").write_text(json.dumps([reasonaqa(0, "caption second audio"), reasonaqa(1, "is it?")]))
    assert plan(toy(published, "train.json", format="reasonaqa"), stage=4)[0]["rows"] == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["base_id=''"], r"base_id: got '', expected a Hub id"),
        (["base_id=not a repo id!"], r"base_id: got 'not a repo id!', expected a Hub id"),
        (["data.mix.rows=0.5"], r"data\.mix\.rows: got 0\.5, expected an integer"),
        (["warmup_steps=100"], r"stages\.1: its data make 4 steps, .* warmup_steps 100"),
        (["stages.2.hand_over_step=99"], r"stages\.2: its data make 4 steps, hand_over_step is 99"),
        (["stages.3.global_batch_size=5"], r"stages\.3: global_batch_size 5 is no multiple"),
        (["audio_roots=[nothing]"], r"got 'nothing', expected FROM=TO"),
    ],
)
def test_a_plan_refuses_what_the_run_would(noises, overrides, message):
    with pytest.raises(ValueError, match=message):
        plan(toy(noises, "lines", *overrides))


@pytest.mark.parametrize("speed", [0, -5.0, float("nan"), float("inf")])
def test_a_speed_is_positive(noises, speed):
    with pytest.raises(ValueError, match=rf"pairs_per_second: got {speed}, expected a positive number"):
        plan(toy(noises, "lines"), speed)


def test_a_number_of_rows_may_be_written_short(noises):
    assert toy(noises, "lines", "data.mix.rows=1.3e6").data["mix"].rows == 1_300_000


@pytest.mark.slow
def test_hours_are_of_what_was_measured():
    def speeds(name, *overrides):
        values = ["model=nowhere/at-all", "data.classification.rows=1000000", *overrides]
        recipe = load_recipe(name, values)
        stages = plan(recipe)
        for stage, settings in zip(stages, recipe.stages):
            if stage["hours"] is not None:
                pairs = stage["rows"] * settings.epochs
                assert stage["hours"] == pytest.approx(pairs / stage["pairs_per_second"] / 3600)
        return [stage["pairs_per_second"] for stage in stages], [stage["is_measured"] for stage in stages]

    measured = [False, True, True, True]  # none of the first stage, which trains the connector alone
    assert speeds("E6", "micro_batch_size=64") == ([102] * 4, measured)
    assert speeds("E6", "micro_batch_size=128")[0] == [102] * 4
    assert speeds("E1", "micro_batch_size=128")[0] == [472.5] * 4
    assert speeds("E6")[0] == [18.2] * 4
    assert speeds("E6", "micro_batch_size=4")[0] == [9.1] * 4  # which take as long as of 8
    assert speeds("E6", "micro_batch_size=32", "stages.4.micro_batch_size=64")[0] == [86.5] * 3 + [102]
    assert speeds("E9", "micro_batch_size=64") == ([102] * 4, [False] * 4)  # a frozen encoder is not slower
    # 64 + 256 positions count as 320 / 172 pairs, and so do 576 + 108 as 684 / 172
    found, known = speeds("E18", "micro_batch_size=64", "stages.4.micro_batch_size=64")
    assert found == pytest.approx([102, 102, 102, 102 * 172 / 320]) and known == [False, True, True, False]
    found, known = speeds("E14", "micro_batch_size=4")
    equal = 4 * 684 / 172  # between 8 and 16
    speed = 18.2 + (43.2 - 18.2) * (equal - 8) / 8
    assert found == pytest.approx([speed * 172 / 684] * 4) and known == [False] * 4
    for override in ("recompute=true", "precision=fp32"):
        assert speeds("E6", override)[0] == [None] * 4
    text = plan_text(plan(load_recipe("E6", ["model=nowhere/at-all", "recompute=true"])))
    assert "unknown hours: nothing similar was measured" in text and "in all" not in text
    text = plan_text(plan(load_recipe("E6", ["model=nowhere/at-all"])))
    assert "micro-batches of 8 at 18.2 pairs/s (estimated)\n" in text and "205.7 hours in all" in text
    assert speeds("E6", "encoder_attention=sdpa") == ([18.2] * 4, [False] * 4)
    text = plan_text(plan(load_recipe("E6", ["model=nowhere/at-all"]), 500.0))
    assert "at the given speed" in text and "H100" not in text and "estimated" not in text
