"""The clips of `sam-alm benchmark load`."""

import numpy as np
import pytest
import soundfile

from sam_lab.parsers import parse
from sam_lab.timing import load as load_module
from sam_lab.timing.load import load_rows, write_clips


def test_the_clips_are_what_they_are_said_to_be(tmp_path):
    files = write_clips(tmp_path, 1, 0)
    for kind, subtype in (("flac", "PCM_16"), ("ogg", "VORBIS")):
        information = soundfile.info(files[kind][0])
        assert (information.samplerate, information.channels, information.subtype) == (44100, 2, subtype)
        assert information.duration == pytest.approx(10)
        sound = soundfile.read(files[kind][0])[0]
        assert np.abs(sound[:, 0] - sound[:, 1]).max() > 0.01  # really stereo


def test_loading_needs_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(load_module, "EXAMPLES", tmp_path / "examples")
    _, args = parse(["benchmark", "load", "--json", "unused.json"])
    with pytest.raises(FileNotFoundError, match=r"benchmark load: there is no .*examples, expected a checkout"):
        next(load_rows(args))
