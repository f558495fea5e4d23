"""Tasks: their definitions against LTU's and the datasets' own lists, their readers on small copies of them."""

import csv
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from shared import DATA, PAPER_TABLES, SOUNDS, needs

from sam_lab.evaluation import labels as labels_module
from sam_lab.evaluation import tasks as tasks_module
from sam_lab.evaluation.items import Item, audio_stem
from sam_lab.evaluation.layouts import LAYOUTS
from sam_lab.evaluation.tasks import CITATIONS, TASKS, label_key, read_esc50, read_task

TEXT = DATA / "text"
LTU = TEXT / "bench" / "ltu_eval_labels"
needs_shared = needs(LTU)
MMAU = ("mmau_mini", "mmau")


def put(folder, files):
    """Writes text files, and empty ones where there is no text: audio is found, not decoded."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text or "", encoding="utf-8")
    return folder


def lines(*rows):
    return "".join(row + "\n" for row in rows)


def short(items, folder):
    """Id, audio within the folder, references."""
    return [
        (item.id, item.audio and Path(item.audio).relative_to(folder).as_posix(), *item.references) for item in items
    ]


# -- Definitions --------------------------------------------------------------------------------------------------


def ltu_labels(name):
    """LTU's file as its scripts read it: comma by comma where names are not quoted, quotation marks taken off."""
    path = LTU / f"class_labels_indices_{name}.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    assert {len(row) for row in rows} == {3}
    return [row[2].strip("'") for row in rows]


@needs_shared
@pytest.mark.parametrize(
    ("name", "file", "count", "spelling"),
    [
        ("dcase2017", "dcase", 17, lambda label: label.replace(",", "")),
        ("vocalsound", "vs", 6, str),
        ("tut2017", "tut", 15, lambda label: label.replace("_", " ")),
        ("beijing_opera", "bj", 4, str),
        ("vggsound", "vgg", 309, lambda label: label.replace(",", "_")),
        ("fsd50k", "fsd50k", 200, str),
        ("audioset", "as", 527, str),
    ],
)
def test_labels_are_ltus_in_its_order(name, file, count, spelling):
    labels = TASKS[name].labels
    assert len(set(labels)) == len(labels) == count
    assert [spelling(label) for label in labels] == ltu_labels(file)


@needs_shared
def test_labels_are_spelled_as_the_datasets_spell_them():
    def column(name, number, header=True):
        with (TEXT / name).open(newline="", encoding="utf-8") as file:
            return [row[number] for row in csv.reader(file)][header:]

    assert list(TASKS["esc50"].labels) == column("labels/esc50_class_labels_indices.csv", 2)
    assert set(TASKS["esc50"].labels) == set(column("esc50/esc50_meta_rebuilt.csv", 3))
    assert set(TASKS["vggsound"].labels) == set(column("labels/vggsound_stat.csv", 0, header=False))
    assert list(TASKS["fsd50k"].labels) == column("labels/fsd50k_class_labels_indices.csv", 2)
    table = "labels/audioset_class_labels_indices.csv"
    assert list(labels_module.AUDIOSET_NAMES.items()) == list(zip(column(table, 1), column(table, 2)))
    ontology = {
        entry["id"]: entry["name"] for entry in json.loads((TEXT / "labels/audioset_ontology.json").read_text())
    }
    assert all(ontology[mid] == name for mid, name in labels_module.AUDIOSET_NAMES.items())


@pytest.mark.parametrize("name", TASKS)
def test_each_task_is_complete(name):
    task = TASKS[name]
    assert task.name == name and task.title and re.search(r"\b20\d\d$", task.citation)
    assert len(task.label_texts) == len(task.labels)
    assert len({label_key(label) for label in task.labels}) == len(task.labels)  # no two are confused
    assert (task.metric in ("accuracy", "micro_f1", "map")) == bool(task.labels)
    assert (task.prompt == "") == (name in MMAU)


def test_texts_are_cleaned_as_ltu_cleans_them():
    def text(name, label):
        task = TASKS[name]
        return task.label_texts[task.labels.index(label)]

    assert text("esc50", "door_wood_knock") == "door wood knock"
    assert text("dcase2017", "Fire engine, fire truck (siren)") == "fire engine fire truck (siren)"
    assert (
        text("tut2017", "cafe/restaurant") == "cafe/restaurant" and text("tut2017", "metro_station") == "metro station"
    )
    assert text("beijing_opera", "Clapper-drum") == "clapper-drum"
    assert text("vggsound", "bird chirping, tweeting") == "bird chirping, tweeting"
    assert text("fsd50k", "Chink_and_clink") == "chink and clink"
    assert text("audioset", "Male speech, man speaking") == "male speech, man speaking"


def test_what_is_not_zero_shot_is_said():
    heard = {name for name, task in TASKS.items() if task.heard_in_training}
    assert heard == {"vggsound", "fsd50k", "audioset", "audiocaps", "clotho"}


def test_prompts_metrics_and_sizes():
    ask = "Close-ended question: Write an audio caption describing the sound"
    prompts = Counter(task.prompt for task in TASKS.values())
    assert prompts[f"{ask}."] == 8
    assert TASKS["audiocaps"].prompt == f"{ask}, in AudioCaps style."
    assert TASKS["clotho"].prompt == "Close-ended question: Create a caption for audio, in Clotho style."
    metrics = {
        "dcase2017": "micro_f1",
        "fsd50k": "map",
        "audioset": "map",
        "audiocaps": "caption",
        "clotho": "caption",
    }
    for name, task in TASKS.items():
        assert task.metric == metrics.get(name, "mmau" if name in MMAU else "accuracy")
    sizes = {name: task.expected for name, task in TASKS.items()}
    assert sizes["esc50"] == 2000 and sizes["beijing_opera"] == 236 and sizes["clotho"] == 1045
    assert sizes["tut2017"] == 15 * 312  # 312 segments a scene
    assert sizes["vocalsound"] == 21024 - 15570 - 1860  # all but training and validation
    assert sizes["fsd50k"] == 51197 - 40966  # all but the development set
    assert set(LAYOUTS) | set(MMAU) == set(TASKS) and set(CITATIONS) == set(TASKS) - {"mmau_mini"}


@needs(PAPER_TABLES)
def test_columns_are_those_of_table_1():
    table = json.loads(PAPER_TABLES.read_text())["table1"]
    columns = {task.paper_column for task in TASKS.values()} - {None}
    assert columns == set(table["metrics"])


# -- Published folders --------------------------------------------------------------------------------------------


def test_esc50(tmp_path):
    put(
        tmp_path,
        {
            "meta/esc50.csv": lines(
                "filename,fold,target,category,esc10,src_file,take",
                "1-100032-A-0.wav,1,0,dog,True,100032,A",
                "4-1-A-30.wav,4,30,door_wood_knock,False,1,A",
                "4-2-B-10.wav,4,10,rain,True,2,B",
            ),
            "audio/1-100032-A-0.wav": None,
            "audio/4-1-A-30.flac": None,  # of another format
        },
    )
    items = read_task("esc50", tmp_path)
    assert short(items, tmp_path) == [
        ("1-100032-A-0.wav", "audio/1-100032-A-0.wav", "dog"),
        ("4-1-A-30.wav", "audio/4-1-A-30.flac", "door_wood_knock"),
        ("4-2-B-10.wav", None, "rain"),
    ]
    assert [item.groups for item in items] == [{"fold": "1"}, {"fold": "4"}, {"fold": "4"}]
    assert {item.prompt for item in items} == {TASKS["esc50"].prompt}
    assert [item.id for item in read_task("esc50", str(tmp_path), fold=4)] == ["4-1-A-30.wav", "4-2-B-10.wav"]
    assert read_esc50(tmp_path, 4) == (
        [(tmp_path / "audio" / "4-1-A-30.flac", "door_wood_knock")],
        ["4-2-B-10.wav"],
    )
    with pytest.raises(ValueError, match="has no clips of fold 3"):
        read_task("esc50", tmp_path, fold=3)
    shutil.rmtree(tmp_path / "audio")
    assert [item.audio for item in read_task("esc50", tmp_path)] == [None] * 3
    with pytest.raises(ValueError, match="has 1 rows and none of their audio"):
        read_esc50(tmp_path, 1)


@pytest.mark.parametrize(
    ("table", "audio"),
    [
        ("groundtruth_weak_label_evaluation_set.csv", "evaluation_set_formatted_audio_segments/Y{}.wav"),
        ("groundtruth_release/groundtruth_strong_label_evaluation_set.csv", "{}.ogg"),
        ("metadata/groundtruth_weak_label_evaluation_set.csv", "evaluation/Y{}.wav"),
    ],
)
def test_dcase2017(tmp_path, table, audio):
    truth = lines(
        "-pzwalZ0ub0_5.000_15.000.wav\t5.000\t15.000\tReversing beeps",
        "CN0Bi4MDpA4_20.000_30.000.wav\t20.000\t30.000\tAir horn, truck horn",
        "-pzwalZ0ub0_5.000_15.000.wav\t5.000\t15.000\tTruck",
        "-pzwalZ0ub0_5.000_15.000.wav\t7.250\t9.000\tTruck",  # the strong table has a line for each time
    )
    put(tmp_path, {table: truth, audio.format("-pzwalZ0ub0_5.000_15.000"): None})
    assert short(read_task("dcase2017", tmp_path), tmp_path) == [
        ("-pzwalZ0ub0_5.000_15.000.wav", audio.format("-pzwalZ0ub0_5.000_15.000"), "Reversing beeps", "Truck"),
        ("CN0Bi4MDpA4_20.000_30.000.wav", None, "Air horn, truck horn"),
    ]


def test_vocalsound(tmp_path):
    names = ["f0003_0_cough", "m1234_1_throatclearing", "f0003_0_sigh"]
    clips = {"data": [{"wav": f"/data/vs/audio_16k/{name}.wav", "labels": "/m/01b_21"} for name in names]}
    put(
        tmp_path,
        {
            "datafiles/te.json": json.dumps(clips),
            "audio_44k/f0003_0_cough.wav": None,
            "audio_16k/f0003_0_cough.wav": None,
            "audio_16k/m1234_1_throatclearing.wav": None,
            "audio_16k/m0001_0_sneeze.wav": None,  # of the training part
        },
    )
    assert short(read_task("vocalsound", tmp_path), tmp_path) == [
        ("f0003_0_cough.wav", "audio_16k/f0003_0_cough.wav", "Cough"),
        ("m1234_1_throatclearing.wav", "audio_16k/m1234_1_throatclearing.wav", "Throat clearing"),
        ("f0003_0_sigh.wav", None, "Sigh"),
    ]
    (tmp_path / "datafiles" / "te.json").write_text('{"data": [{"label": "x"}]}')
    with pytest.raises(ValueError, match=r"te\.json: is no list of VocalSound's, expected"):
        read_task("vocalsound", tmp_path)


@pytest.mark.parametrize("session", ["\tb020", ""])  # the evaluation set's meta.txt has no third column
def test_tut2017(tmp_path, session):
    meta = lines(f"audio/b020_90_100.wav\tbeach{session}", f"audio/7.wav\tcafe/restaurant{session}")
    put(tmp_path, {"meta.txt": meta + f"audio/8.wav\tcity_center{session}\n", "audio/b020_90_100.wav": None})
    put(tmp_path, {"audio/8.flac": None})
    assert short(read_task("tut2017", tmp_path), tmp_path) == [
        ("b020_90_100.wav", "audio/b020_90_100.wav", "beach"),
        ("7.wav", None, "cafe/restaurant"),
        ("8.wav", "audio/8.flac", "city_center"),
    ]


def test_beijing_opera(tmp_path):
    names = ["123__user__bangu-01.wav", "123__user__xiaoluo-07.wav", "Daluo/1.wav", "naobo/1.wav", "Small_gong/2.flac"]
    names.append("xiaoluo/daluo-2.wav")  # the file's name counts before the folder's
    put(tmp_path, dict.fromkeys([*names, "README.txt"]))
    assert sorted(short(read_task("beijing_opera", tmp_path), tmp_path)) == [
        ("123__user__bangu-01.wav", "123__user__bangu-01.wav", "Clapper-drum"),
        ("123__user__xiaoluo-07.wav", "123__user__xiaoluo-07.wav", "small gong"),
        ("Daluo/1.wav", "Daluo/1.wav", "Large gong"),
        ("Small_gong/2.flac", "Small_gong/2.flac", "small gong"),
        ("naobo/1.wav", "naobo/1.wav", "Cymbals"),
        ("xiaoluo/daluo-2.wav", "xiaoluo/daluo-2.wav", "Large gong"),
    ]
    put(tmp_path, {"piano/1.wav": None})
    with pytest.raises(ValueError, match=r"piano/1\.wav has the label '', expected one of the 4 of Beijing Opera"):
        read_task("beijing_opera", tmp_path)


@pytest.mark.parametrize("folder", ["", "audio/"])
def test_vggsound(tmp_path, folder):
    put(
        tmp_path,
        {
            "vggsound.csv": lines(
                '---g-f_I2yQ,1,"bee, wasp, etc. buzzing",test',
                "B5KE79I2f-A,220,wind noise,test",
                "B5KE79I2f-A,188,wind noise,test",  # the same video
                "B5KE79I2f-A,5,wind noise,train",
                "FwVYUHKoLtQ,34,people marching,test",
            ),
            f"{folder}---g-f_I2yQ_000001.wav": None,
            f"{folder}B5KE79I2f-A_188.mp4": None,
            f"{folder}FwVYUHKoLtQ.wav": None,  # which part of the video, it does not say
        },
    )
    assert short(read_task("vggsound", tmp_path), tmp_path) == [
        ("---g-f_I2yQ_000001", f"{folder}---g-f_I2yQ_000001.wav", "bee, wasp, etc. buzzing"),
        ("B5KE79I2f-A_000220", None, "wind noise"),
        ("B5KE79I2f-A_000188", f"{folder}B5KE79I2f-A_188.mp4", "wind noise"),
        ("FwVYUHKoLtQ_000034", None, "people marching"),
    ]
    put(tmp_path, {"vggsound.csv": "FwVYUHKoLtQ,soon,people marching,test\n"})
    with pytest.raises(ValueError, match=r"vggsound\.csv: line 1 has 'soon' as a time, expected seconds"):
        read_task("vggsound", tmp_path)


def test_fsd50k(tmp_path):
    put(
        tmp_path,
        {
            "FSD50K.ground_truth/eval.csv": lines(
                "fname,labels,mids",
                '37199,"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h,/m/04rlf"',
                "175151,Sink_(filling_or_washing),/m/0130jx",
            ),
            "FSD50K.eval_audio/175151.wav": None,
            "FSD50K.dev_audio/37199.wav": None,  # not of this set
        },
    )
    assert short(read_task("fsd50k", tmp_path), tmp_path) == [
        ("37199", None, "Electric_guitar", "Guitar", "Music"),
        ("175151", "FSD50K.eval_audio/175151.wav", "Sink_(filling_or_washing)"),
    ]


def test_audioset(tmp_path):
    videos = ["--4gqARaEJE", "--BfvyPmVMo", "--U7joUcTCo", "-0RWZT-miFs", "-3bGlOhRkAo"]
    put(
        tmp_path,
        {
            "eval_segments.csv": lines(
                "# Segments csv created Sun Mar  5 10:54:25 2017",
                "# num_ytids=20371, num_segs=20371, num_unique_labels=527, num_positive_labels=51804",
                "# YTID, start_seconds, end_seconds, positive_labels",
                f'{videos[0]}, 0.000, 10.000, "/m/068hy,/m/07q6cd_,/m/0bt9lr,/m/0jbk"',
                f'{videos[1]}, 20.000, 30.000, "/m/03l9g"',
                f'{videos[2]}, 0.000, 10.000, "/m/01b_21"',
                f'{videos[3]}, 420.000, 430.000, "/m/04rlf"',
                f'{videos[4]}, 30.000, 40.000, "/m/05zppz"',
            ),
            f"eval/{videos[0]}.flac": None,
            f"eval/Y{videos[1]}.wav": None,
            f"eval/{videos[2]}_0.000_10.000.wav": None,
            f"eval/{videos[3]}_420000_430000.wav": None,
        },
    )
    assert short(read_task("audioset", tmp_path), tmp_path) == [
        (videos[0], f"eval/{videos[0]}.flac", "Domestic animals, pets", "Squeak", "Dog", "Animal"),
        (videos[1], f"eval/Y{videos[1]}.wav", "Hammer"),
        (videos[2], f"eval/{videos[2]}_0.000_10.000.wav", "Cough"),
        (videos[3], f"eval/{videos[3]}_420000_430000.wav", "Music"),
        (videos[4], None, "Male speech, man speaking"),
    ]


def test_audiocaps(tmp_path):
    put(
        tmp_path,
        {
            "test.csv": lines(
                "audiocap_id,youtube_id,start_time,caption",
                "103549,7fmOlUlwoNg,20,Constant rattling noise",
                '1,VjSEIRnLAh8,30,"Food is frying, and a woman talks"',
                "2,7fmOlUlwoNg,20,Something rattles: it does not stop",
                "3,7fmOlUlwoNg,20,Constant rattling noise",  # said twice
                "4,6BJ455B1aAs,0,A rocket flies by",
                "5,GOD8Bt5LfDE,100,Humming",
            ),
            "audio/7fmOlUlwoNg.flac": None,
            "audio/YVjSEIRnLAh8.wav": None,
            "audio/4.wav": None,
        },
    )
    again = "Constant rattling noise"
    assert short(read_task("audiocaps", tmp_path), tmp_path) == [
        ("7fmOlUlwoNg", "audio/7fmOlUlwoNg.flac", again, "Something rattles: it does not stop", again),
        ("VjSEIRnLAh8", "audio/YVjSEIRnLAh8.wav", "Food is frying, and a woman talks"),
        ("6BJ455B1aAs", "audio/4.wav", "A rocket flies by"),
        ("GOD8Bt5LfDE", None, "Humming"),
    ]


def test_clotho(tmp_path):
    header = "file_name," + ",".join(f"caption_{number}" for number in range(1, 6))
    put(
        tmp_path,
        {
            "clotho_captions_evaluation.csv": lines(
                header, 'Santa Motor.wav,"A motor, it hums.",b,c,d,e', "FR.CTC.08.S.001.wav,f,g,h,i,j"
            ),
            "evaluation/FR.CTC.08.S.001.ogg": None,
            "development/Santa Motor.wav": None,  # another split
        },
    )
    assert short(read_task("clotho", tmp_path), tmp_path) == [
        ("Santa Motor.wav", None, "A motor, it hums.", "b", "c", "d", "e"),
        ("FR.CTC.08.S.001.wav", "evaluation/FR.CTC.08.S.001.ogg", "f", "g", "h", "i", "j"),
    ]
    shutil.rmtree(tmp_path / "evaluation")
    assert [item.audio for item in read_task("clotho", tmp_path)] == [None, None]
    put(tmp_path, {"clotho_captions_evaluation.csv": lines(header, "a.wav,b,c")})
    with pytest.raises(ValueError, match=r"line 2 has no caption_3, caption_4, caption_5, expected the columns"):
        read_task("clotho", tmp_path)
    for wordless in ("", " ", "..."):  # the metrics would refuse it when all the answers are there
        put(tmp_path, {"clotho_captions_evaluation.csv": lines(header, f"a.wav,b,c,{wordless},d,e")})
        with pytest.raises(ValueError, match=f"line 2 has {wordless!r} for a caption, expected one with at least one"):
            read_task("clotho", tmp_path)


@needs_shared
@pytest.mark.parametrize(
    ("name", "source", "target"),
    [("clotho", "clotho", "clotho_captions_evaluation.csv"), ("audiocaps", "audiocaps", "test.csv")],
)
def test_published_captions(tmp_path, name, source, target):
    shutil.copy(TEXT / source / "test.csv", tmp_path / target)
    items = read_task(name, tmp_path)
    assert len(items) == len({item.id for item in items}) == TASKS[name].expected
    assert {len(item.references) for item in items} == {5}
    assert {item.audio for item in items} == {None}
    if name == "clotho":
        assert items[0].id == "Santa Motor.wav" and items[0].references[1].startswith("A person is using electric")
    else:
        assert items[0].id == "7fmOlUlwoNg"
        assert items[0].references[0] == "Constant rattling noise and sharp vibrations"


@needs(SOUNDS)
def test_esc50_of_real_clips(tmp_path):
    with (SOUNDS / "metadata.csv").open(newline="", encoding="utf-8") as file:
        clips = [row for row in csv.DictReader(file) if row["source"] == "ESC-50"]
    heard = Counter(clip["recording"] for clip in clips)
    with (TEXT / "esc50" / "esc50_meta_rebuilt.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    takes = Counter(row["src_file"] for row in table)
    once = {row["src_file"]: row for row in table if takes[row["src_file"]] == 1}
    clips = [clip for clip in clips if heard[clip["recording"]] == 1 and clip["recording"].split(":")[1] in once][:12]
    assert len(clips) == 12
    (tmp_path / "audio").mkdir()
    truth = {}
    for clip in clips[:-1]:  # the last one is missing
        row = once[clip["recording"].split(":")[1]]
        file = tmp_path / "audio" / f"{Path(row['filename']).stem}.ogg"
        file.symlink_to((SOUNDS / clip["file"]).resolve())
        truth[row["filename"]] = (str(file), clip["original_label"], clip["official_fold"].removeprefix("fold"))
    (tmp_path / "meta").mkdir()
    shutil.copy(TEXT / "esc50" / "esc50_meta_rebuilt.csv", tmp_path / "meta" / "esc50.csv")
    items = read_task("esc50", tmp_path)
    assert len(items) == TASKS["esc50"].expected
    found = {item.id: (item.audio, *item.references, item.groups["fold"]) for item in items if item.audio}
    assert found == truth


# -- LTU's evaluation files ---------------------------------------------------------------------------------------


def ltu_file(folder, *rows):
    """LTU's keys; rows are of path and output."""
    keys = {"instruction": "Classify the sound.", "input": "", "dataset": "x", "task": "cla"}
    path = folder / "eval.json"
    path.write_text(json.dumps([{**keys, "audio_id": audio, "output": output} for audio, output in rows], indent=1))
    return path


@pytest.mark.parametrize(
    ("name", "output", "references"),
    [
        ("esc50", "Label: door_wood_knock", ["door_wood_knock"]),
        ("esc50", "door wood knock", ["door_wood_knock"]),
        ("dcase2017", "Audio label:Air horn, truck horn", ["Air horn, truck horn"]),
        ("dcase2017", "Fire engine fire truck (siren)", ["Fire engine, fire truck (siren)"]),
        ("vocalsound", "Throat clearing", ["Throat clearing"]),
        ("tut2017", "cafe/restaurant", ["cafe/restaurant"]),
        ("tut2017", "metro_station", ["metro_station"]),
        ("beijing_opera", "Clapper\u00ad-drum,", ["Clapper-drum"]),
        ("beijing_opera", "Small gong", ["small gong"]),
        ("vggsound", "Label: bird chirping,  tweeting", ["bird chirping, tweeting"]),
        ("vggsound", "Label: Bee, wasp, etc. buzzing", ["bee, wasp, etc. buzzing"]),
        (
            "fsd50k",
            "Labels: Chink and clink; Sink (filling or washing)",
            ["Chink_and_clink", "Sink_(filling_or_washing)"],
        ),
        ("audioset", "Labels: Speech; Male speech, man speaking; Bee, wasp, etc.", None),
        ("audioset", '"Speech"', ["Speech"]),
        ("audiocaps", "Audio caption: A sign reads: stop", ["A sign reads: stop"]),
        ("audiocaps", "A man says: hello", ["A man says: hello"]),
        ("clotho", 'caption : "Rain falls."', ["Rain falls."]),
        ("clotho", "A caption is read out", ["A caption is read out"]),
    ],
)
def test_the_truth_in_an_ltu_file(tmp_path, name, output, references):
    file = ltu_file(tmp_path, ("/data/x.flac", output))
    references = references or ["Speech", "Male speech, man speaking", "Bee, wasp, etc."]
    (item,) = read_task(name, file)
    assert item == Item("x.flac", None, TASKS[name].prompt, tuple(references))


def test_records_on_one_clip_are_one_item(tmp_path):
    rows = [
        ("/data/a.wav", "Audio caption: one"),
        ("/data/b.wav", "two"),
        ("/data/a.wav", "one"),
        ("/data/a.wav", "3"),
    ]
    items = read_task("clotho", ltu_file(tmp_path, *rows))
    assert [(item.id, item.references) for item in items] == [("a.wav", ("one", "one", "3")), ("b.wav", ("two",))]
    rows = [("/data/a.wav", "Train"), ("/data/a.wav", "Train horn"), ("/data/a.wav", "Train")]
    (item,) = read_task("dcase2017", ltu_file(tmp_path, *rows))
    assert item.references == ("Train", "Train horn")


def test_audio_of_an_ltu_file(tmp_path):
    put(tmp_path, dict.fromkeys(["here/a.wav", "here/b.ogg", "near/c.wav", "other/a.wav"]))
    rows = [
        ("/data/sls/esc/a.wav", "dog"),
        ("/data/sls/esc/b.wav", "rain"),
        ("near/c.wav", "cat"),
        ("gone.wav", "cow"),
    ]
    file = ltu_file(tmp_path, *rows)
    roots = [("/data/sls", "/nowhere"), ("/data/sls/esc", str(tmp_path / "here"))]
    assert short(read_task("esc50", file, audio_roots=roots), tmp_path) == [
        ("a.wav", "here/a.wav", "dog"),
        ("b.wav", "here/b.ogg", "rain"),
        ("c.wav", "near/c.wav", "cat"),
        ("gone.wav", None, "cow"),
    ]
    assert [item.audio is None for item in read_task("esc50", file)] == [True, True, False, True]
    # two files of one name are two clips
    items = read_task("esc50", ltu_file(tmp_path, ("other/a.wav", "dog"), ("here/a.wav", "cat")))
    assert [(item.id, *item.references) for item in items] == [("other/a.wav", "dog"), ("here/a.wav", "cat")]


def test_folds_of_an_ltu_file(tmp_path):
    file = ltu_file(tmp_path, ("/x/1-100032-A-0.wav", "dog"), ("/x/4-9-B-10.wav", "rain"))
    (item,) = read_task("esc50", file, fold=4)
    assert item.id == "4-9-B-10.wav" and item.groups == {"fold": "4"}


@needs_shared
def test_a_file_of_ltus_that_is_no_evaluation_file():
    with pytest.raises(ValueError, match=r"sample_600\.json: record 1 has None as output, expected text"):
        read_task("audioset", TEXT / "bench" / "ltu_as_strong_eval_sample_600.json")


# -- Errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_wrong_folder(tmp_path, name):
    put(tmp_path, {"song.wav": None, "notes.txt": "x"})
    with pytest.raises(FileNotFoundError) as error:
        read_task(name, tmp_path)
    assert str(tmp_path) in str(error.value) and f"expected {TASKS[name].title} as it is" in str(error.value)
    assert LAYOUTS[name].files in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"data: there is no '.*nowhere', expected"):
        read_task(name, tmp_path / "nowhere")


def test_an_unknown_task_and_a_fold_where_there_is_none(tmp_path):
    with pytest.raises(ValueError, match="name: got 'esc-50', expected one of esc50, dcase2017"):
        read_task("esc-50", tmp_path)
    with pytest.raises(ValueError, match="fold: got 4 for clotho, expected None"):
        read_task("clotho", tmp_path, fold=4)


def test_a_label_that_is_none(tmp_path):
    put(tmp_path, {"meta/esc50.csv": lines("filename,fold,category", "a.wav,1,dog", "b.wav,1,unicorn")})
    with pytest.raises(
        ValueError, match=r"esc50\.csv: line 3 has the label 'unicorn', expected one of the 50 of ESC-50"
    ):
        read_task("esc50", tmp_path)
    with pytest.raises(ValueError, match=r"eval\.json: record 2 has the label 'Choo', expected one of the 17"):
        read_task("dcase2017", ltu_file(tmp_path, ("a.wav", "Train"), ("b.wav", "Train; Choo")))
    put(tmp_path, {"eval_segments.csv": '# YTID\nabc, 0.000, 10.000, "/m/04rlf,/m/nothing"\n'})
    with pytest.raises(
        ValueError, match=r"eval_segments\.csv: line 2 has the label '/m/nothing', expected one of the 527"
    ):
        read_task("audioset", tmp_path)


def test_a_byte_order_mark_is_no_text(tmp_path):
    put(tmp_path, {"meta/esc50.csv": "\ufefffilename,fold,category\na.wav,1,dog\n", "meta.txt": "\ufeffa.wav\tbus\n"})
    assert [item.id for name in ("esc50", "tut2017") for item in read_task(name, tmp_path)] == ["a.wav"] * 2


def test_a_line_that_is_cut_off(tmp_path):
    put(tmp_path, {"meta.txt": "audio/1.wav\tbus\naudio/2.w"})
    with pytest.raises(ValueError, match=r"meta\.txt: line 2 has 1 columns, expected 2"):
        read_task("tut2017", tmp_path)
    put(tmp_path, {"meta.txt": ""})
    with pytest.raises(ValueError, match=r"has no clips, expected TUT2017"):
        read_task("tut2017", tmp_path)


def test_two_files_for_one_clip(tmp_path):
    put(tmp_path, {"meta.txt": "audio/1.wav\tbus\n", "audio/1.wav": None, "audio/copy/1.flac": None})
    with pytest.raises(ValueError, match=r"1\.wav and .*1\.flac are both '1\.wav', expected one file"):
        read_task("tut2017", tmp_path)


def test_mmau_is_read_by_its_own_module(monkeypatch):
    monkeypatch.setattr(tasks_module, "read_mmau", lambda data, split, audio_roots: [(data, split)])
    assert read_task("mmau_mini", "x.json") == [("x.json", "test-mini")]
    assert read_task("mmau", "x.json") == [("x.json", "test")]


def test_a_dot_in_a_name_ends_no_name():
    assert audio_stem("a/FR.CTC.08.S.001.wav") == "FR.CTC.08.S.001"
    assert audio_stem("abc_30.000_40.000") == "abc_30.000_40.000" and audio_stem("B.WAV") == "B"
