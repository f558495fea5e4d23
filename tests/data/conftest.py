"""Records of sound, whole and broken, that the tests of streams, orders and batches share."""

import numpy as np
import pytest
import soundfile
from tiny import tiny_processor, write_shards

NUM_RECORDS = 23


@pytest.fixture(scope="session")
def processor():
    return tiny_processor()


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Six clips that sound different, of a third to two thirds of a second."""
    folder = tmp_path_factory.mktemp("clips")
    for index in range(6):
        time = np.arange(5300 + 900 * index) / 16000
        sound = 0.3 * np.sin(2 * np.pi * 200 * (index + 1) * time) * np.exp(-index * time)
        soundfile.write(folder / f"{index}.wav", sound, 16000)
    return folder


@pytest.fixture(scope="session")
def records(clips):
    """Records of very different lengths; every fourth is text only."""
    return [
        {
            "audio": None if index % 4 == 3 else str(clips / f"{index % 6}.wav"),
            "prompt": f"What is it, {index}?",
            "answer": f"It is number {index}" + " and so on" * (index * 7 % 10) + ".",
            "source": "abc"[index % 3],
            "kind": "other",
        }
        for index in range(NUM_RECORDS)
    ]


@pytest.fixture(scope="session")
def folder(records, tmp_path_factory):
    """The records in three shards, in a folder whose name is a pattern."""
    return write_shards(tmp_path_factory.mktemp("records") / "a[b]c*", records, (10, 1, 12))


@pytest.fixture
def broken(records, tmp_path):
    """The records, of which four have audio that cannot be read."""
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("This is no sound.")
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16000)
    names = {0: "missing.wav", 4: "empty.wav", 10: "text.wav", 12: "short.wav"}
    return [
        {**record, "audio": str(tmp_path / names[index])} if index in names else record
        for index, record in enumerate(records)
    ]
