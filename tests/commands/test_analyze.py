"""`sam-alm analyze`."""

import json
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_processor

CLIPS = Path(__file__).resolve().parents[2] / "examples" / "audio"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def test_table_3_of_two_checkpoints(command, base, tmp_path, capsys):
    tiny_model("time_major").save_pretrained(tmp_path / "b")
    tiny_processor("time_major").save_pretrained(tmp_path / "b")
    command("analyze", "tokens", base, tmp_path / "b", "--clips", CLIPS, "--limit", 2, "--output", tmp_path / "t.json")
    head, row = [line.split() for line in capsys.readouterr().out.splitlines()[1:3]]
    written = json.loads((tmp_path / "t.json").read_text())
    assert head == ["size", "concatenation", "time_major"]
    ranks = [f"{entry['effective_rank']['mean']:.1f}" for entry in written["checkpoints"]]
    assert row[1::3] == ranks and written["clips"]["count"] == written["checkpoints"][0]["count"] == 2


def test_figure_3_and_table_4(command, base, tmp_path, capsys):
    command("analyze", "distance", "--model", base, "--output", tmp_path / "d.json")
    found = json.loads((tmp_path / "d.json").read_text())["connectors"]
    assert [(d["next_time_step"], d["next_band"]) for d in found.values()] == [(1, 0), (9, 1), (1, 65)]
    result = {"benchmark": "esc50", "metric": "accuracy", "value": 0.5, "protocol": "likelihood", "count": 9}
    (tmp_path / "esc.json").write_text(json.dumps({**result, "model": "m", "interval": [0.4, 0.6], "predictions": []}))
    command("analyze", "swap", f"mine={tmp_path / 'esc.json'}", "--output", tmp_path / "s.json")
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert [row.get("encoder_from") for row in rows] == ["E4", "E5", "E6", None]
    assert rows[3]["model"] == "mine" and rows[3]["ESC"]["value"] == 50
    text = capsys.readouterr().out
    assert "50.0 [40.0, 60.0]" in text and "mine: 9 of the 2,000 clips of ESC-50" in text
