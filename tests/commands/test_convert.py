"""`sam-alm convert`; what it writes is tested in tests/test_conversion.py."""

import inspect

from sam_lab import conversion as conversion_module
from sam_lab.cli import main


def test_convert_passes_on_what_was_given(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(conversion_module, "convert", lambda **words: calls.append(words) or "the report")
    base = ["convert", "--audio-encoder", "a", "--language-model", "l@main", "--tokenizer", "t", "--output", "o"]
    assert main(base) == 0
    assert capsys.readouterr().out == "the report\n"
    more = ["--connector", "time_major", "--dtype", "bfloat16", "--max-shard-size", "1GB", "--push-to-hub", "me/sam"]
    more += ["--audio-encoder-heads", "4"]
    assert main([*base, *more, "--check", "x.wav", "x.npy"]) == 0
    first = {"audio_encoder": "a", "language_model": "l@main", "tokenizer": "t", "output": "o"}
    rest = {
        "connector": "time_major",
        "dtype": "bfloat16",
        "max_shard_size": "1GB",
        "push_to_hub": "me/sam",
        "audio_encoder_heads": 4,
    }
    assert calls == [first, {**first, **rest, "check": ["x.wav", "x.npy"]}]


def test_the_options_have_the_names_of_conversions_arguments():
    names = set(inspect.signature(conversion_module.convert).parameters)
    assert {"audio_encoder", "language_model", "tokenizer", "output", "connector"} <= names
    assert {"dtype", "max_shard_size", "push_to_hub", "check", "audio_encoder_heads"} <= names


def test_convert_errors_are_one_message(tmp_path, capsys):
    missing = str(tmp_path / "nothing.pt")
    arguments = ["--audio-encoder", missing, "--language-model", missing, "--tokenizer", missing]
    assert main(["convert", *arguments, "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "nothing.pt" in error and "Traceback" not in error
