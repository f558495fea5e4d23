"""The paper's numbers, the counts behind its claims, and its tables with results beside them."""

import json
from pathlib import Path

import pytest
from shared import PAPER_TABLES, needs

from sam_lab.common.text_tables import markdown
from sam_lab.paper.numbers import compare, count_claims, paper_tables
from sam_lab.paper.tables import claims_table, load_results, measured_rows, table1, table2, table4, table5

ROOT = Path(__file__).resolve().parents[2]


def prediction(audio, text, reference, prompt="What?"):
    return {"audio": audio, "prompt": prompt, "prediction": text, "reference": reference, "correct": None}


def result(benchmark="esc50", **changes):
    """A result as `sam-alm evaluate` writes it."""
    return {
        "benchmark": benchmark,
        "protocol": "text_encoder",
        "metric": "accuracy",
        "value": 0.8125,
        "interval": [0.79, 0.83],
        "count": 2000,
        "text_encoder": "clap-2022",
        "model": "runs/small",
        "checkpoint_hash": "aa",
        "predictions": [prediction("1.wav", "A dog.", "dog")],
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    def write_results(*results, name=None):
        paths = []
        for number, each in enumerate(results):
            path = tmp_path / f"{name or len(list(tmp_path.iterdir()))}-{number}.json"
            path.write_text(json.dumps(each))
            paths.append(str(path))
        return paths

    return write_results


# -- The paper's numbers ------------------------------------------------------------------------------------------


@needs(PAPER_TABLES)
def test_the_numbers_are_the_papers():
    assert paper_tables() == json.loads(PAPER_TABLES.read_text(encoding="utf-8"))


def test_numbers_that_the_paper_prints():
    """A few cells, read from the paper's pages."""
    paper = paper_tables()
    (e6,) = (row for row in paper["table1"]["rows"] if row.get("experiment") == "E6")
    assert (e6["ESC"], e6["VS"], e6["CL"], e6["lora_rank"]) == (89.7, 70.9, 11.8, 256)
    assert [row["model"] for row in paper["table1"]["rows"][:3]] == ["LTU-7B", "GAMA-7B", "ssLALM-2.8B"]
    gemma = paper["table5"]["rows"][0]
    assert (gemma["model"], gemma["sound_mini"], gemma["speech_test"]) == ("Gemma 3n-4B", 55.86, 62.13)
    assert [len(paper["table1"]["rows"]), len(paper["table3"]), len(paper["table4"])] == [21, 9, 3]


def test_the_claims_counted_in_table_1():
    """Counted before by other code and by hand: won, tied, lost of 30 cells."""
    counts = [(row["won"], row["tied"], row["lost"]) for row in count_claims() if row["table"] == 1]
    assert counts == [(24, 1, 5), (23, 1, 6), (14, 2, 14), (16, 1, 13), (5, 1, 24)]


def test_the_claims_counted_in_tables_4_and_5():
    swap, reason, gemma = ((row["won"], row["tied"], row["lost"]) for row in count_claims() if row["table"] != 1)
    assert swap == (9, 2, 1)  # lost: Clotho 11.4 against 11.5; tied: AudioSet and AudioCaps of E5
    assert reason == (18, 0, 0)
    assert gemma == (2, 0, 4)  # sound won; music and speech lost


def test_counts_follow_the_numbers():
    first, second = {"A": 1.0, "B": 2.0, "C": 3.0}, {"A": 0.5, "B": 2.0, "C": 4.0}
    counted = compare([(first, second), (first, first)], ["A", "B", "C"])
    assert counted == {"won": 1, "tied": 4, "lost": 1, "mean_difference": [-0.17, 0.0]}
    paper = paper_tables()
    for row in paper["table1"]["rows"]:
        if row.get("experiment") in ("E1", "E2", "E3"):
            row["ESC"] = 99.0
    won = count_claims(paper)[0]
    assert (won["won"], won["tied"], won["lost"]) == (21, 1, 8)  # ESC-50 was won in all three sizes


# -- Tables -------------------------------------------------------------------------------------------------------


def test_table_1_has_ours_in_the_papers_units(write):
    fsd = result("fsd50k", metric="map", value=0.4512, interval=None, count=10231)
    clotho = result(
        "clotho",
        protocol="captions",
        metric="SPICE",
        value=0.1234,
        interval=[0.12, 0.13],
        count=1045,
        model="runs/small",
    )
    table = table1(load_results(write(result(), fsd, clotho)))
    assert len(table["rows"]) == 22
    row = table["rows"][-1]
    assert (row["model"], row["protocol"]) == ("small", "nearest label by clap-2022")
    assert row["ESC"] == {"value": 81.25, "interval": [79.0, 83.0], "count": 2000}
    assert (row["FSD"]["value"], row["FSD"]["interval"], row["CL"]["value"]) == (45.12, None, 12.34)
    assert "DCASE" not in row
    (zero_shot,) = table["notes"]
    assert "ESC, DCASE, VS, TUT, BJO. Not" in zero_shot and zero_shot.endswith("VGG, FSD, AS, AC, CL.")
    text = markdown(table)
    assert "81.2 [79.0, 83.0]" in text and "| LTU-7B" in text and "| 45.1 " in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_each_protocol_and_text_encoder_has_its_row(write):
    by_protocol = {
        "text_encoder": {"metric": "accuracy", "value": 0.5, "interval": [0.4, 0.6]},
        "likelihood": {"metric": "accuracy", "value": 0.75, "interval": [0.7, 0.8]},
    }
    other = result(text_encoder="minilm", value=0.25)
    clotho = result("clotho", protocol="captions", metric="SPICE", value=0.1, count=1045)
    rows, notes = measured_rows(load_results(write(result(protocols=by_protocol), other, clotho)), ["ESC", "CL"])
    cells = {row["protocol"]: (row["ESC"]["value"], row.get("CL", {}).get("value")) for row in rows}
    assert cells == {
        "nearest label by clap-2022": (50.0, 10.0),
        "likeliest label": (75.0, None),
        "nearest label by minilm": (25.0, 10.0),
    }
    assert notes == []


def test_what_is_not_the_whole_benchmark_is_said(write):
    part = result(count=396, fold=4, failed=[{"id": "1", "reason": "broken"}])
    no_spice = result("clotho", protocol="captions", metric="CIDEr", value=0.4, count=1045)
    table = table1(load_results(write(part, no_spice)))
    assert table["notes"][1:] == [
        "small: 396 of the 2,000 clips of ESC-50, fold 4.",
        "small: 1 clips of ESC-50 could not be read.",
        "small: of Clotho there is CIDEr and no SPICE, so that its cell is empty.",
    ]
    assert "CL" not in table["rows"][-1]


def test_table_4_by_the_encoders_name(write):
    paths = write(result(checkpoint_hash="a"), result(checkpoint_hash="b", value=0.5))
    table = table4(load_results([f"own={paths[0]}", f"larger={paths[1]}"]))
    assert [(row["encoder_from"], row["ESC"]) for row in table["rows"][:3]] == [
        ("E4", 81.5),
        ("E5", 80.2),
        ("E6", 80.2),
    ]
    assert [(row["model"], row["ESC"]["value"]) for row in table["rows"][3:]] == [("own", 81.25), ("larger", 50.0)]


def mmau(**changes):
    tasks = {"sound": (163, 333), "music": (134, 334), "speech": (69, 333)}
    by_task = {
        task: {"value": right / count, "correct": right, "count": count} for task, (right, count) in tasks.items()
    }
    return result(
        "mmau_mini",
        protocol="mmau_correct",
        value=0.366,
        count=1000,
        **{"by_task": by_task, "unanswered": 2, "baselines": {"always_first": {"by_task": {"sound": 0.492492}}}},
        **changes,
    )


def test_table_5_by_task_beside_what_guessing_reaches(write):
    withheld = result("mmau", protocol="mmau_correct", value=None, interval=None, count=9000)
    table = table5(load_results(write(mmau(), withheld)))
    *paper, guess, row = table["rows"]
    assert len(paper) == 10 and paper[-1]["sound_mini"] == 48.95
    # the paper's SAM+OR-130M is right in 163 of 333 questions on sound, too
    assert [row[f"{task}_mini"]["value"] for task in ("sound", "music", "speech")] == [48.95, 40.12, 20.72]
    assert row["sound_mini"]["interval"] == pytest.approx([43.6, 54.3], abs=0.1)  # Wilson's, by hand
    assert "sound_test" not in row
    assert (guess["model"], guess["sound_mini"]) == ("always first", 49.25)
    assert table["notes"] == [
        "small: 2 questions of mini unanswered, counted as wrong.",
        "small: the answers of test are not published; its authors score it.",
    ]


def test_table_2_has_models_beside_the_reference(write):
    answers = [
        prediction("rain roof.wav", "Rain | wind.", ["It rains.", "Rain falls."]),
        prediction("b.wav", "", ["B."]),
    ]
    small = result("clotho", metric="SPICE", protocol="captions", count=1045, predictions=answers)
    large = {**small, "model": "large", "checkpoint_hash": "b"}
    large["predictions"] = [prediction("rain roof.wav", "A storm.", ["It rains.", "Rain falls."])]
    results = load_results(write(small, large))
    table = table2(results, ["rain roof"])
    assert [(row["who"], row["text"]) for row in table["rows"]] == [
        ("Reference", "It rains."),
        ("Reference", "Rain falls."),
        ("small", "Rain | wind."),
        ("large", "A storm."),
    ]
    assert "Rain \\| wind." in markdown(table) and table["notes"] == ["rain roof was asked: What?"]
    assert table2(results[:1], ["b.wav"])["rows"][-1]["text"] == "(no answer)"
    with pytest.raises(ValueError, match=r"clips: large has no answer for 'b.wav'"):
        table2(results, ["b.wav"])
    with pytest.raises(ValueError, match=r"clips: 'c.wav' is in none"):
        table2(results, ["c.wav"])


def test_table_2_tells_benchmarks_and_prompts_apart(write):
    first = result(predictions=[prediction("1.wav", "A.", "dog"), prediction("1.wav", "B.", "dog", "And?")])
    second = result("clotho", protocol="captions", metric="SPICE", count=1045)
    results = load_results(write(first, second))
    with pytest.raises(ValueError, match=r"'1.wav' is in esc50, clotho"):
        table2(results, ["1.wav"])
    assert [row["who"] for row in table2(results[:1], ["1"])["rows"]] == [
        "Reference",
        "small, asked: What?",
        "small, asked: And?",
    ]


# -- Wrong input --------------------------------------------------------------------------------------------------


def test_results_that_do_not_go_together(write, tmp_path):
    with pytest.raises(ValueError, match=r"both have small on esc50 by text_encoder"):
        load_results(write(result(), result(value=0.1)))
    with pytest.raises(ValueError, match=r"different models, but both are named 'small'"):
        load_results(write(result(), result("clotho", checkpoint_hash="bb")))
    paths = write(result(), result(checkpoint_hash="bb"))
    assert [each["label"] for each in load_results([paths[0], f"other={paths[1]}"])] == ["small", "other"]


def test_a_folder_of_results(tmp_path):
    """As `sam-alm evaluate` writes it for several benchmarks."""
    config = {"model_config": {"connector": "time_major"}}
    for each in (result(fold=None, **config), result("vocalsound", count=3594, **config)):
        (tmp_path / f"{each['benchmark']}.json").write_text(json.dumps(each))
    (tmp_path / "mmau-submission.json").write_text("[]")
    results = load_results([f"ours={tmp_path}"])
    assert [(each["benchmark"], each["label"]) for each in results] == [("esc50", "ours"), ("vocalsound", "ours")]
    row = table1(results)["rows"][-1]
    assert (row["model"], row["connector"], "ESC" in row, "VS" in row) == ("ours", "time_major", True, True)


def test_files_that_are_no_results(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file 'absent.json'"):
        load_results(["absent.json"])
    with pytest.raises(
        ValueError, match=r"benchmark 'urban', which is in none of the paper's tables; expected.*esc50"
    ):
        load_results(write(result("urban")))
    with pytest.raises(ValueError, match="has no 'benchmark'"):
        load_results(write({"a": 1}))
    with pytest.raises(ValueError, match="has no model; name it"):
        load_results(write(result(model="")))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        load_results([str(tmp_path / "broken.json")])


def test_claims_are_a_table():
    table = claims_table()
    assert table["rows"][0]["won"] == 24 and table["rows"][0]["mean_difference"] == "+3.44, +1.11, +0.65"
    assert "| 24 " in markdown(table)


def test_a_result_of_this_repository_gives_a_row():
    """What `sam-alm evaluate` wrote for `examples/sam-tiny`."""
    path = ROOT / "benchmarks" / "sam-tiny-esc50-fold4.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    rows = table1(load_results([f"tiny={path}"]), only_ours=True)["rows"]
    named = next(row for row in rows if row["protocol"] == "label named")
    assert named["ESC"]["value"] == round(100 * written["value"], 2) and len(rows) == len(written["protocols"])
