"""`sam-alm tables`."""

import json

from sam_lab.paper.numbers import CITATION, paper_tables

RESULT = {
    "benchmark": "esc50",
    "protocol": "text_encoder",
    "metric": "accuracy",
    "value": 0.8125,
    "interval": [0.79, 0.83],
    "count": 2000,
    "text_encoder": "clap-2022",
    "model": "runs/small",
    "checkpoint_hash": "aa",
    "predictions": [
        {"audio": "1.wav", "prompt": "What?", "prediction": "A dog.", "reference": "dog", "correct": None}
    ],
}
MMAU = {
    **RESULT,
    "benchmark": "mmau_mini",
    "protocol": "mmau_correct",
    "by_task": {task: {"value": 0.4, "correct": 133, "count": 333} for task in ("sound", "music", "speech")},
    "unanswered": 2,
    "baselines": {"always_first": {"by_task": {"sound": 0.492492}}},
}


def test_tables_are_printed_and_written(command, tmp_path, capsys):
    (tmp_path / "esc50.json").write_text(json.dumps(RESULT))
    (tmp_path / "mmau.json").write_text(json.dumps(MMAU))
    results = (tmp_path / "esc50.json", tmp_path / "mmau.json")
    command("tables", *results, "--json", tmp_path / "tables.json")
    printed = capsys.readouterr().out
    assert "**Table 1" in printed and "**Table 5" in printed and "Table 4" not in printed and CITATION in printed
    written = json.loads((tmp_path / "tables.json").read_text())
    assert written["tables"]["1"]["rows"][-1]["ESC"]["interval"] == [79.0, 83.0]
    command("tables")
    printed = capsys.readouterr().out
    assert [f"**{title}" in printed for title in ("Table 1", "Table 4", "Table 5", "The paper's claims")] == [True] * 4
    command("tables", "--table", "2", "--clips", "1.wav", "--", tmp_path / "esc50.json")
    assert "A dog." in capsys.readouterr().out


def test_the_paper_may_have_other_numbers(command, tmp_path, capsys):
    paper = paper_tables()
    paper["table1"]["rows"][0]["ESC"] = 12.3
    (tmp_path / "paper.json").write_text(json.dumps(paper))
    command("tables", "--table", "1", "--paper", tmp_path / "paper.json")
    assert "| 12.3 " in capsys.readouterr().out
    (tmp_path / "paper.json").write_text("{}")
    for options, message in [
        (["--paper", tmp_path / "paper.json"], "has no 'source'"),
        (["--paper", tmp_path / "none.json"], "there is no file"),
        (["--table", "2"], "expected clips for Table 2"),
        (["absent.json"], "there is no file 'absent.json'"),
    ]:
        command("tables", *options, error=message)
