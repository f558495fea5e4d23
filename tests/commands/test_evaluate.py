"""`sam-alm evaluate`: every prediction, several tasks, humans, questions, errors, two processes."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import soundfile
import torch
from tiny import NOTHING_OPEN, tiny_model, tiny_processor, tone

from sam_lab.commands import evaluate as evaluate_module
from sam_lab.evaluation import caption_metrics as caption_metrics_module
from sam_lab.evaluation import predictions as predictions_module
from sam_lab.evaluation.caption_metrics import caption_scores
from sam_lab.evaluation.predictions import read_parts
from sam_lab.evaluation.wordforms import names_label

ROOT = Path(__file__).resolve().parents[2]
CLIPS = ROOT / "examples" / "audio"


LABELS = ["dog", "cow", "rain", "cat", "hen", "frog", "crow", "pig", "wind"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def test_writes_every_prediction(command, base, tmp_path, capsys):
    (tmp_path / "meta").mkdir()
    (tmp_path / "audio").mkdir()
    rows = [("dog.wav", 1, "dog"), ("cow.wav", 2, "cow"), ("rain.wav", 2, "rain"), ("absent.wav", 2, "cat")]
    for name, _, label in rows[:3]:
        shutil.copy(CLIPS / f"{label}.ogg", tmp_path / "audio" / f"{Path(name).stem}.ogg")  # found by its stem
    with open(tmp_path / "meta" / "esc50.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([("filename", "fold", "category"), *rows])
    output = tmp_path / "score.json"
    options = ("--model", base, "--data", tmp_path, "--fold", 2, "--device", "cpu", "--output", output)
    message = r"esc50: 2 of 3 clips are present.*min_coverage=95%.*absent\.wav"
    command("evaluate", "esc50", *options, "--min-coverage", 0.95, error=message)
    assert not output.exists()
    command("evaluate", "esc50", *options, "--max-new-tokens", 8)
    result = json.loads(output.read_text())
    assert (result["benchmark"], result["protocol"], result["fold"]) == ("esc50", "names_label", 2)
    assert (result["count"], result["expected"], result["missing"]) == (2, 3, ["absent.wav"])
    assert [item["reference"] for item in result["predictions"]] == ["cow", "rain"]
    assert [item["audio"] for item in result["predictions"]] == ["cow.ogg", "rain.ogg"]
    for item in result["predictions"]:
        assert item["correct"] == names_label(item["prediction"], item["reference"])
    assert result["value"] == sum(item["correct"] for item in result["predictions"]) / 2
    assert "1 of 3 clips are missing" in capsys.readouterr().out
    assert len(result["checkpoint_hash"]) == 64 and result["versions"]["torch"] == torch.__version__
    assert result["config"]["max_new_tokens"] == 8 and result["model_config"]["connector"] == "concatenation"


def test_names_that_are_no_text_reach_the_result(command, base, tmp_path, capsys):
    """Beijing Opera has audio only, so that the items are named after the files."""
    (tmp_path / "data").mkdir()
    names = [b"bangu-\xff.wav", "daluo-\u00e9.wav".encode(), b"naobo\n.wav"]
    for name in names:
        path = os.fsencode(tmp_path / "data") + b"/" + name
        with open(path, "wb") as handle:
            soundfile.write(handle, tone(), 16000, format="WAV")
    options = ("--model", base, "--protocol", "likelihood", "--max-new-tokens", 2, "--device", "cpu")
    output = Path(os.fsdecode(os.fsencode(tmp_path) + b"/out-\xff.json"))
    command("evaluate", "beijing_opera", "--data", tmp_path / "data", *options, "--output", output)
    result = json.loads(output.read_text(encoding="utf-8"))
    assert [os.fsencode(each["id"]) for each in result["predictions"]] == names
    assert [os.fsencode(each["audio"]) for each in result["predictions"]] == names
    assert os.fsencode(result["config"]["output"]) == os.fsencode(output) and result["count"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=["C", "C, no UTF-8"])
def test_a_table_names_its_files_under_any_locale(base, tmp_path, locale):
    soundfile.write(tmp_path / "caf\u00e9.wav", tone(), 16000)
    rows = "audio,prompt,answer,kind\ncaf\u00e9.wav,Is it?,yes,binary\nnone.wav,Is it?,no,binary\n"
    (tmp_path / "rows.csv").write_text("\ufeff" + rows, encoding="utf-8")  # as spreadsheets write it
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **locale}
    command = [sys.executable, "-m", "sam_alm", "evaluate", "questions", "--model", base, "--data", "rows.csv"]
    command += ["--max-new-tokens", "2", "--device", "cpu", "--output", "out.json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [each["audio"] for each in result["predictions"]] == ["caf\u00e9.wav"]
    assert result["missing"] == ["1: none.wav"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("pycocoevalcap") is None, reason='pycocoevalcap is missing: pip install ".[eval]"')
def test_scores_the_people_who_captioned(command, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SAM_SPICE_JARS", raising=False)
    monkeypatch.setattr(
        caption_metrics_module, "meteor_scores", lambda said, truth: (0.0, [0.0] * len(said))
    )  # takes seconds
    captions = ["A dog barks loudly", "A dog is barking", "Rain falls on a roof", "Rain is falling", "It rains"]
    rows = [("a.wav", *captions), ("b.wav", *captions[::-1])]
    with open(tmp_path / "clotho_captions_evaluation.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([("file_name", *(f"caption_{n}" for n in range(1, 6))), *rows])
    command("evaluate", "clotho", "--human", "--data", tmp_path, "--output", tmp_path / "new" / "human.json")
    result = json.loads((tmp_path / "new" / "human.json").read_text())
    rounds = [
        caption_scores([a, b], [captions[:k] + captions[k + 1 :], captions[::-1][:k] + captions[::-1][k + 1 :]])
        for k, (a, b) in enumerate(zip(captions, captions[::-1]))
    ]
    assert result["scores"]["BLEU_1"] == pytest.approx(sum(each["BLEU_1"] for each in rounds) / 5)
    assert (result["model"], result["metric"], result["rounds"], result["count"]) == ("human", "CIDEr", 5, 2)
    assert result["value"] == result["scores"]["CIDEr"] and "SPICE" in result["lacking"]
    assert "clotho, captions, CIDEr: " in capsys.readouterr().out
    (tmp_path / "q.csv").write_text("audio,prompt,answer,kind\na.wav,Is it?,Yes.,binary\n")
    options = ("--data", tmp_path / "q.csv", "--output", tmp_path / "q.json")
    message = "human: got questions, expected a benchmark with captions"
    command("evaluate", "questions", "--human", *options, error=message)


class LetterCounts:
    """A text encoder without a model."""

    name = "letters"

    def __init__(self):
        self.cut_texts = set()

    def embed(self, texts, batch_size=64):
        counts = torch.tensor([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])
        return torch.nn.functional.normalize(counts.float() + 0.1, dim=1)


def test_runs_several_benchmarks(command, base, tmp_path, monkeypatch, capsys):
    esc50, opera = tmp_path / "esc50", tmp_path / "opera"
    (esc50 / "meta").mkdir(parents=True)
    (esc50 / "audio").mkdir()
    (esc50 / "meta" / "esc50.csv").write_text("filename,fold,category\ndog.wav,1,dog\nrain.wav,1,rain\n")
    for name in ("dog", "rain"):
        shutil.copy(CLIPS / f"{name}.ogg", esc50 / "audio")
    opera.mkdir()
    shutil.copy(CLIPS / "dog.ogg", opera / "gong.ogg")
    record = {"audio_id": "/published/gong.wav", "output": "Audio caption: small gong"}
    (tmp_path / "beijing_opera.json").write_text(json.dumps([record]))
    monkeypatch.setattr(evaluate_module, "load_text_encoder", lambda name, device, tokenizer: LetterCounts())
    data = ("--data", f"esc50={esc50}", "--data", f"beijing_opera={tmp_path / 'beijing_opera.json'}")
    options = (*data, "--model", base, "--device", "cpu", "--max-new-tokens", 4)
    options += ("--audio-root", f"/published={opera}", "--text-encoder", "letters", "--output", tmp_path / "out")
    asked, answer_batch = [], predictions_module.answer_batch

    def dying(model, processor, items, *rest):
        asked.append([item.id for item in items])
        if asked.count(["gong.wav"]) == 1:
            raise RuntimeError("killed")
        return answer_batch(model, processor, items, *rest)

    monkeypatch.setattr(predictions_module, "answer_batch", dying)
    with pytest.raises(RuntimeError, match="killed"):
        command("evaluate", "esc50", "beijing_opera", *options)
    command("evaluate", "esc50", "beijing_opera", "esc50", *options)
    assert asked == [["dog.wav", "rain.wav"], ["gong.wav"], ["gong.wav"]]  # what was done is not done again
    results = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").iterdir()}
    assert sorted(results) == ["beijing_opera", "esc50"]
    assert list(results["esc50"]["protocols"]) == ["text_encoder", "likelihood", "names_label"]
    assert results["beijing_opera"]["predictions"][0]["reference"] == "small gong"
    assert all(result["text_encoder"] == "letters" for result in results.values())
    printed = capsys.readouterr().out
    assert "esc50: 2 of 2 clips are present, 2,000 were published" in printed
    model, cells = base.name, printed.split("Table 1: ")[1].splitlines()[4].split("|")
    assert cells[1].strip() == model and cells[4].strip().startswith(f"{100 * results['esc50']['value']:.1f} [")


def test_asks_questions(command, base, tmp_path, capsys):
    shutil.copy(CLIPS / "dog.ogg", tmp_path)
    lines = ["audio,prompt,answer,kind", "dog.ogg,Is it a dog?,Yes.,binary", "dog.ogg,Is it a cow?,No.,binary"]
    (tmp_path / "questions.csv").write_text("\n".join(lines) + "\n")
    options = ("--model", base, "--data", tmp_path / "questions.csv", "--device", "cpu", "--max-new-tokens", 4)
    command("evaluate", "questions", *options, "--output", tmp_path / "out.json")
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["protocol"], result["count"]) == ("answers_question", 2)
    assert result["by_kind"]["binary"]["count"] == 2 and "binary: " in capsys.readouterr().out


def test_reports_what_is_wrong(command, base, tmp_path):
    options = ("--model", base, "--data", tmp_path, "--device", "cpu", "--output", tmp_path / "out.json")

    def refused(message, *words):
        command("evaluate", *words, status=2, error=message)

    refused(r"invalid choice: '?esc51'? \(choose from .*esc50.*vocalsound", "esc51", *options)
    command("evaluate", "esc50", *options, error=r"esc50\.csv.*expected ESC-50 as it is published")
    message = r"--model: got '.*nowhere', expected a SAM checkpoint"
    command("evaluate", "esc50", "--model", tmp_path / "nowhere", *options[2:], error=message)
    refused("for 2 benchmarks, expected a folder", "esc50", "vocalsound", *options)
    message = "--data: got 'clotho', which is for none of esc50"
    refused(message, "esc50", *options, "--data", f"clotho={tmp_path}")
    without = (*options[:2], *options[4:])
    message = "--data: got clotho twice, 'a' and 'b'"
    refused(message, "clotho", *without, "--data", "clotho=a", "--data", "clotho=b")
    message = "data: there is no 'clotho', expected Clotho"  # a folder of that name
    command("evaluate", "clotho", *without, "--data", "clotho", error=message)
    refused("--data: got none for vocalsound", "esc50", "vocalsound", *without[:-1], tmp_path, "--data", "esc50=a")
    for option, reason in {
        ("--fold", 4): "only esc50 has folds",
        ("--shuffle-choices", 0): "only MMAU has choices",
        ("--prompt-style", "plain"): "only MMAU's prompts have styles",
        ("--text-tokenizer", "gpt2"): "there is no text encoder",
    }.items():
        refused(f"{option[0]}: given, but {reason}", "clotho", *options, *option)
    refused("--require-spice: given, but no captions are scored", "esc50", *options, "--require-spice")
    for option in ("--limit", "--batch-size", "--max-new-tokens"):
        refused(f"{option}: got '0', expected a positive integer", "esc50", *options, option, 0)
    (tmp_path / "opera").mkdir()
    shutil.copy(CLIPS / "dog.ogg", tmp_path / "opera" / "small gong 1.ogg")
    options = ("--model", base, "--data", tmp_path / "opera", "--device", "cpu", "--output", tmp_path / "out.json")
    message = r"text_encoder: got None for beijing_opera.*clap-2023.*--protocol likelihood"
    command("evaluate", "beijing_opera", *options, error=message)


# -- Two processes ------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def esc50(tmp_path_factory):
    """Nine clips in ESC-50's layout, and a tiny checkpoint beside: tones of different pitch, the last but one longer
    than 10.24 s, the last no sound at all."""
    folder = tmp_path_factory.mktemp("esc50")
    (folder / "audio").mkdir()
    for number, label in enumerate(LABELS[:-1]):
        sound = tone(11.0 if number == 7 else 0.5, frequency=200 * (number + 1))
        soundfile.write(folder / "audio" / f"{label}.wav", sound, 16000)
    (folder / "audio" / "wind.wav").write_bytes(b"not a sound")
    (folder / "meta").mkdir()
    lines = [f"{label}.wav,4,{label}" for label in LABELS]
    (folder / "meta" / "esc50.csv").write_text("filename,fold,category\n" + "\n".join(lines) + "\n")
    tiny_model().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    return folder


def words(esc50, output):
    options = ["--model", esc50 / "model", "--data", esc50, "--fold", "4", "--output", output, "--device", "cpu"]
    options += ["--protocol", "names_label", "--protocol", "likelihood", "--batch-size", "2", "--max-new-tokens", "4"]
    return [str(word) for word in ["evaluate", "esc50", *options]]


def result_of(path):
    """What does not depend on the clock, nor on how many processes there were."""
    result = json.loads(path.read_text())
    for name in ("seconds", "clips_per_second", "resumed"):
        del result[name]
    del result["config"]["processes"], result["config"]["output"]
    return result


@pytest.mark.slow
def test_two_processes_end_what_one_started(command, esc50, tmp_path, monkeypatch):
    """A run is killed, taken up again by two processes, and writes what one writes that nothing happened to."""
    command(*words(esc50, tmp_path / "one.json"))
    whole, calls = predictions_module.answer_batch, []

    def dying(*args):
        calls.append(args)
        if len(calls) == 3:
            raise Killed
        return whole(*args)

    with monkeypatch.context() as patch:
        patch.setattr(predictions_module, "answer_batch", dying)
        with pytest.raises(Killed):
            command(*words(esc50, tmp_path / "two.json"))
    assert len(read_parts(tmp_path / "two.json.answers")) == 4

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    done = subprocess.run(
        [sys.executable, *torchrun, NOTHING_OPEN, *words(esc50, tmp_path / "two.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1 of 9 clips cannot be read and count as wrong" in done.stdout
    assert done.stdout.count("esc50, likelihood, accuracy:") == 1
    two, one = result_of(tmp_path / "two.json"), result_of(tmp_path / "one.json")
    assert two == one
    assert [row["id"] for row in two["predictions"]] == [f"{label}.wav" for label in LABELS]
    told = json.loads((tmp_path / "two.json").read_text())
    assert told["config"]["processes"] == 2 and told["resumed"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "two.json"]
