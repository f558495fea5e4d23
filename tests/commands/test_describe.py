"""`sam-alm describe`, called as a user calls it, with the tiny model of tiny.py; and examples/quickstart.py."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import tiny_model, tiny_processor

from sam_lab.cli import main
from sam_lab.commands import describe as describe_module
from sam_lab.common.prompts import DEFAULT_PROMPT

ROOT = Path(__file__).parents[2]
RATE = 16000
PROMPT = "Close-ended question: Write an audio caption describing the sound."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny_model()
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            parameter.data.fill_(-4.0)  # a long memory: the answer depends on the audio, before the whole prompt
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of several lengths in seconds, so different that the answers differ."""
    folder = tmp_path_factory.mktemp("clips")
    generator = np.random.default_rng(0)
    paths = {}
    for index, seconds in enumerate([1.0, 2.5, 10.24, 20.5, 27.3]):
        time = np.arange(round(seconds * RATE)) / RATE
        tone = np.sin(2 * np.pi * 220 * 2**index * time) * np.exp(-(time % (index + 1)))
        noise = generator.normal(size=time.size) * (time % 5 > index)
        paths[seconds] = str(folder / f"{seconds}.wav")
        soundfile.write(paths[seconds], 0.4 * tone + 0.1 * noise, RATE, subtype="FLOAT")
    return paths


def answer(checkpoint, waveform, max_new_tokens=8) -> str:
    """What the model says of one clip of up to one window, by the way of the README."""
    from transformers import AutoModel, AutoProcessor

    import sam_alm  # noqa: F401

    model, processor = AutoModel.from_pretrained(checkpoint), AutoProcessor.from_pretrained(checkpoint)
    inputs = processor(text=PROMPT, audio=waveform, sampling_rate=RATE, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=max_new_tokens)[0, inputs["input_ids"].shape[1] :]
    return " ".join(processor.decode(tokens, skip_special_tokens=True).split())


def test_a_line_a_file(checkpoint, clips, capsys):
    paths = [clips[1.0], clips[2.5], clips[10.24]]
    assert main(["describe", *paths, "--model", checkpoint, "--max-new-tokens", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    answers = [answer(checkpoint, soundfile.read(path)[0]) for path in paths]
    assert len(set(answers)) == 3  # else the comparison would prove little
    assert lines == [f"{path}\t{text}" for path, text in zip(paths, answers)]


def test_a_line_a_window(checkpoint, clips, capsys):
    path = clips[27.3]
    assert main(["describe", path, "--model", checkpoint, "--max-new-tokens", "8"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [[path, "0.00-10.24"], [path, "10.24-20.48"], [path, "20.48-27.30"]]
    waveform = soundfile.read(path)[0]
    # a window's frames are 1,024 of 25 ms each 10 ms: 164,080 samples, from every 163,840th on
    parts = [waveform[start : start + 164080] for start in (0, 163840, 327680)]
    assert [line[2] for line in lines] == [answer(checkpoint, part) for part in parts]


def test_json_has_one_object_a_window_and_drops_a_tail_under_25_ms(checkpoint, clips, capsys):
    arguments = ["describe", clips[1.0], clips[20.5], "--model", checkpoint, "--max-new-tokens", "8", "--json"]
    assert main(arguments) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(row) for row in rows] == [["audio", "start", "end", "text", "seconds"]] * 3
    assert [(row["audio"], row["start"], row["end"], row["seconds"]) for row in rows] == [
        (clips[1.0], 0.0, 1.0, 1.0),
        (clips[20.5], 0.0, 10.24, 20.5),
        (clips[20.5], 10.24, 20.48, 20.5),
    ]
    assert rows[0]["text"] == answer(checkpoint, soundfile.read(clips[1.0])[0])


def test_batches_fill_across_files_and_keep_the_order(checkpoint, clips, capsys, monkeypatch):
    def describe(size):
        monkeypatch.setattr(describe_module, "BATCH_SIZE", size)
        assert main(["describe", *clips.values(), "--model", checkpoint, "--max-new-tokens", "8"]) == 0
        return capsys.readouterr().out

    sizes = []
    generate = describe_module.answer_windows
    monkeypatch.setattr(
        describe_module,
        "answer_windows",
        lambda model, processor, prompt, features, *rest: (
            sizes.append(len(features)) or generate(model, processor, prompt, features, *rest)
        ),
    )
    together = describe(3)
    assert sizes == [3, 3, 2]  # windows: 1, 1, 1, 2 and 3
    assert describe(1) == together


def test_the_prompt_reaches_the_model(checkpoint, clips, capsys):
    texts = []
    for prompt in (PROMPT, "What else?"):
        arguments = ["describe", clips[2.5], "--model", checkpoint, "--max-new-tokens", "8", "--prompt", prompt]
        assert main(arguments) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] != texts[1]


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_described(checkpoint, clips, tmp_path, capsys):
    broken, short, missing = tmp_path / "broken.wav", tmp_path / "short.wav", tmp_path / "missing.wav"
    broken.write_bytes(b"no sound at all")
    soundfile.write(short, np.zeros(399), RATE)
    paths = [str(broken), clips[1.0], str(short), str(missing), str(tmp_path), clips[2.5]]
    assert main(["describe", *paths, "--model", checkpoint, "--max-new-tokens", "2"]) == 1
    output = capsys.readouterr()
    assert [line.split("\t")[0] for line in output.out.splitlines()] == [clips[1.0], clips[2.5]]
    errors = [line for line in output.err.splitlines() if line.startswith("sam-alm: ")]
    assert [error.split(": ")[1] for error in errors] == [str(broken), str(short), str(missing), str(tmp_path)]


def test_whatever_happens_to_a_file_is_its_own(checkpoint, clips, tmp_path, capsys, monkeypatch):
    """Too little memory for one file, or an error that nobody expected, and a name with a line end."""
    read = describe_module.read_windows

    def fail(path, extractor):
        if "large" in path:
            raise MemoryError
        if "odd" in path:
            raise RuntimeError("a decoder's\nown trouble")
        return read(path, extractor)

    monkeypatch.setattr(describe_module, "read_windows", fail)
    assert (
        main(["describe", "large.wav", clips[1.0], "o\nodd.wav", "--model", checkpoint, "--max-new-tokens", "2"]) == 1
    )
    output = capsys.readouterr()
    assert [line.split("\t")[0] for line in output.out.splitlines()] == [clips[1.0]]
    errors = [line for line in output.err.splitlines() if line.startswith("sam-alm: ")]
    assert errors == ["sam-alm: large.wav: MemoryError", "sam-alm: o\\nodd.wav: RuntimeError: a decoder's own trouble"]


NAMES = [
    b"a\nb.wav",
    b"t\tb.wav",
    b"back\\nslash.wav",
    "caf\u00e9.wav".encode(),
    b"odd-\xff.wav",
    b"\x1b[31m.wav",
    b"x:y.wav",
]
LOCALES = [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}, {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"}]
LOCALES += [{"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}]


@pytest.mark.slow
@pytest.mark.parametrize("locale", LOCALES, ids=lambda locale: " ".join(map("=".join, locale.items())))
def test_any_name_is_one_line_under_any_locale(checkpoint, clips, tmp_path, locale):
    """Every file is described. The path's column is the name's bytes but for the documented escapes."""
    for name in NAMES:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(Path(clips[1.0]).read_bytes())
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **locale}
    command = [sys.executable, "-m", "sam_alm", "describe", "--model", checkpoint, "--max-new-tokens", "2"]

    def run(*options):
        done = subprocess.run(
            [os.fsencode(word) for word in (*command, *options)] + NAMES,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            timeout=120,
        )
        assert b"Traceback" not in done.stderr
        assert done.returncode == 0 and b"sam-alm: " not in done.stderr
        return [line for line in done.stdout.split(b"\n") if line]

    escaped = {
        b"a\\nb.wav": NAMES[0],
        b"t\\tb.wav": NAMES[1],
        b"back\\\\nslash.wav": NAMES[2],
        b"\\x1b[31m.wav": NAMES[5],
    }
    if "PYTHONIOENCODING" in locale:
        escaped[rb"caf\xe9.wav"] = NAMES[3]
    lines = run()
    assert all(line.count(b"\t") == 1 for line in lines)
    named = [line.split(b"\t")[0] for line in lines]
    assert sorted(escaped.get(name, name) for name in named) == sorted(NAMES)
    named = [json.loads(line)["audio"].encode("utf-8", "surrogateescape") for line in run("--json")]
    assert sorted(named) == sorted(NAMES)


def test_a_file_that_breaks_off_or_is_too_long_is_named_or_described(checkpoint, clips, tmp_path, capsys):
    half = tmp_path / "half.wav"
    half.write_bytes(Path(clips[20.5]).read_bytes()[: 44 + 4 * 8 * RATE])
    options = ["--model", checkpoint, "--max-new-tokens", "2"]
    assert main(["describe", str(half), clips[1.0], *options]) == 1
    output = capsys.readouterr()
    assert [line.split("\t")[0] for line in output.out.splitlines()] == [clips[1.0]]
    assert f"sam-alm: {half}: " in output.err and "breaks off after 8.0" in output.err
    assert main(["describe", str(half), *options, "--incomplete", "keep"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1  # of 8 s
    assert main(["describe", clips[20.5], clips[1.0], *options, "--max-seconds", "15"]) == 1
    output = capsys.readouterr()
    assert "is longer than 15 s" in output.err and output.out.startswith(clips[1.0])


def test_a_file_name_that_is_no_text_stops_nothing(checkpoint, clips, tmp_path, capsysbinary):
    odd = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"odd-\xff.wav"))
    Path(odd).write_bytes(Path(clips[1.0]).read_bytes())
    assert main(["describe", odd, clips[2.5], "--model", checkpoint, "--max-new-tokens", "2"]) == 0
    names = [line.split(b"\t")[0] for line in capsysbinary.readouterr().out.splitlines()]
    assert names == [os.fsencode(odd), os.fsencode(clips[2.5])]


def test_without_a_checkout_there_are_no_defaults(clips, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(describe_module, "EXAMPLES", tmp_path / "examples")
    assert main(["describe", clips[1.0]]) == 1
    assert "--model" in capsys.readouterr().err
    assert main(["describe", "--model", "x"]) == 1
    assert "AUDIO" in capsys.readouterr().err


def test_defaults_of_a_checkout(checkpoint, clips, tmp_path, monkeypatch, capsys):
    (tmp_path / "audio").mkdir()
    for name in ("b.wav", "a.wav"):
        (tmp_path / "audio" / name).write_bytes(Path(clips[1.0]).read_bytes())
    (tmp_path / "audio" / "ATTRIBUTION.md").write_text("not a clip")
    (tmp_path / "sam-tiny").symlink_to(checkpoint)
    monkeypatch.setattr(describe_module, "EXAMPLES", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["describe", "--max-new-tokens", "2"]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["audio/a.wav", "audio/b.wav"]


def test_a_wrong_model_or_device_is_one_line(checkpoint, clips, tmp_path, capsys):
    from transformers import BertConfig, BertModel

    other = BertModel(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    other.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    for arguments, word in (
        (["--model", str(tmp_path / "nothing")], "--model"),
        (["--model", str(tmp_path)], "'bert'"),
        (["--model", checkpoint, "--device", "toaster"], "'toaster'"),
    ):
        assert main(["describe", clips[1.0], *arguments]) == 1
        error = capsys.readouterr().err
        assert word in error and "Traceback" not in error


def test_nobody_reading_on_is_no_crash(checkpoint, clips, monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:  # closing it writes what is left, as the end of a process does
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["describe", clips[1.0], "--model", checkpoint, "--max-new-tokens", "2"]) == 1
    assert "BrokenPipe" not in capsys.readouterr().err


@pytest.mark.slow
def test_the_quickstart_says_the_same(checkpoint, clips):
    command = [sys.executable, "examples/quickstart.py", clips[2.5], checkpoint]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    waveform = soundfile.read(clips[2.5])[0]
    assert " ".join(result.stdout.split()) == answer(checkpoint, waveform, max_new_tokens=64)


def test_the_prompt_is_that_of_training():
    assert DEFAULT_PROMPT == PROMPT


@pytest.mark.skipif(not (ROOT / "examples" / "sam-tiny" / "model.safetensors").exists(), reason="no examples/sam-tiny")
def test_the_readme_shows_what_the_demo_says(monkeypatch, capsys):
    """A row for each clip: | its file | what it is | what the model says of it |."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search("<!-- demo:begin -->\n(.*)<!-- demo:end -->", text, re.DOTALL).group(1)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines() if "|" in line][2:]
    monkeypatch.chdir(ROOT)
    assert main(["describe"]) == 0
    said = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [[Path(row[0].strip("`")).name, row[2]] for row in rows] == [[Path(path).name, text] for path, text in said]
