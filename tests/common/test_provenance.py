"""The hashes name the weights, and nothing else."""

import hashlib

import pytest
import torch
from tiny import tiny_model

from sam_lab.common.provenance import checkpoint_hash, versions, weights_hash


def test_the_checkpoints_hash(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model: .* has no \*\.safetensors"):
        checkpoint_hash(tmp_path)
    for name in ("b", "a"):
        (tmp_path / f"{name}.safetensors").write_bytes(name.encode())
    parts = b"".join(hashlib.sha256(name).digest() for name in (b"a", b"b"))
    assert checkpoint_hash(tmp_path) == hashlib.sha256(parts).hexdigest()
    (tmp_path / "a.safetensors").write_bytes(b"c")
    assert checkpoint_hash(tmp_path) != hashlib.sha256(parts).hexdigest()


def test_the_hash_is_of_the_weights_values():
    first, same, other = tiny_model(), tiny_model(), tiny_model(seed=1)
    assert weights_hash(first) == weights_hash(same) != weights_hash(other)
    rounded = weights_hash(same.bfloat16())
    assert rounded != weights_hash(first)
    assert rounded == weights_hash(same.float())  # the type they are held in does not matter, their values do
    assert weights_hash(first.model.audio_tower) != weights_hash(first)


def test_versions_are_those_that_run():
    found = versions()
    assert found["torch"] == torch.__version__ and {"sam-alm", "python", "transformers"} <= found.keys()
