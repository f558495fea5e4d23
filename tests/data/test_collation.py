"""Rows of a micro-batch: the cutoff, log-mel, packing, and clips that cannot be read."""

from collections import Counter

import datasets
import numpy as np
import pytest
import soundfile
import torch
from tiny import load, tiny_batches, tiny_model, tiny_processor
from torch.utils.data._utils.pin_memory import pin_memory

from processing_sam import SamDataCollator, load_audio
from sam_lab.data import collation as collation_module
from sam_lab.data.collation import RowCollator, collate_rows, compute_features, pack_rows

# -- Rows ---------------------------------------------------------------------------------------------------------


def test_batches_are_the_collators(processor, folder, records):
    (step,) = tiny_batches(folder, processor, 32).order.global_batches(0)
    (batch,) = load(tiny_batches(folder, processor, 32))
    expected = SamDataCollator(processor)(step)
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[key], expected[key]) for key in ("input_ids", "labels", "attention_mask"))
    assert torch.allclose(batch["input_features"], expected["input_features"], atol=1e-5)


@pytest.mark.parametrize("train_on_prompt", [False, True])
@pytest.mark.parametrize("audio", [False, True])
def test_the_cutoff_is_ltus(processor, clips, audio, train_on_prompt):
    prompt, answer = "What?", "A dog."
    text = f"### Instruction:\n{prompt}\n\n### Response:\n{answer}"
    record = {"audio": str(clips / "0.wav") if audio else None, "prompt": prompt, "answer": answer, "source": "s"}
    for cutoff in (36, len(text) - 1, len(text), len(text) + 1, len(text) + 9):
        batch = RowCollator(processor, text_cutoff=cutoff, train_on_prompt=train_on_prompt)([record])
        ids = processor.tokenizer(text)["input_ids"][:cutoff]  # as finetune.py of LTU does
        if len(ids) < cutoff:
            ids = ids + [processor.tokenizer.eos_token_id]
        learned = len(ids) if train_on_prompt else max(len(ids) - len(text) + len(answer), 0)
        slots = 64 * audio
        assert batch["input_ids"][0].tolist() == [258] * slots + ids
        labels = [-100] * (slots + len(ids) - learned) + (ids[-learned:] if learned else [])
        assert batch["labels"][0].tolist() == [-100] + labels[1:]
        assert batch.read["s"]["cut"] == (cutoff <= len(text))
        assert batch.read["s"]["unanswered"] == (learned == 0)


def test_a_clip_is_heard_even_behind_the_cutoff(processor, clips):
    record = {"audio": str(clips / "0.wav"), "prompt": "x" * 90 + "<|audio|>", "answer": "No."}
    batches = tiny_batches(datasets.Dataset.from_list([record]), processor, 1, text_cutoff=60, train_on_prompt=True)
    (batch,) = load(batches)
    assert (batch["input_ids"] == 258).sum() == 64 and batch["input_ids"].shape == (1, 124)
    assert len(batch["input_features"]) == 1


def test_a_micro_batch_without_rows_is_text_without_labels(processor, broken):
    collate = RowCollator(processor)
    loaded = [collate([broken[0]]), collate([])]
    for batch in loaded:
        assert processor.batch_decode(batch["input_ids"]) == ["### Instruction:\n\n\n### Response:\n"]
        assert batch["labels"].eq(-100).all() and "input_features" not in batch
    model = tiny_model().train()
    loss = model(**loaded[0], num_items_in_batch=torch.tensor(5)).loss
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_whatever_a_decoder_raises_is_broken_audio(processor, records, monkeypatch):
    errors = [OSError("x"), ValueError("x"), MemoryError(), soundfile.LibsndfileError(1)]  # the last: a RuntimeError

    def fail(path, **options):
        raise errors.pop()

    monkeypatch.setattr(collation_module, "load_audio", fail)
    batch = RowCollator(processor)([record for record in records if record["audio"]][:4])
    assert not errors and sum(row["broken"] for row in batch.read.values()) == 4
    assert "Error opening" in batch.error or batch.error


def test_pinned_batches_say_what_was_read(processor, records, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # there may be no GPU
    batch = RowCollator(processor)(records[:3])
    assert pin_memory(batch).read == batch.read
    assert {name: row["seen"] for name, row in batch.read.items()} == Counter(r["source"] for r in records[:3])


# -- Log-mel ------------------------------------------------------------------------------------------------------


@pytest.fixture
def loud_and_long(tmp_path):
    """Records of a short clip, one over 10.24 s whose end has another mean, and one that is silent in the middle."""
    rng = np.random.default_rng(0)
    sounds = [rng.normal(0, 0.1, 8000), rng.normal(0.02, 0.01, 200_000), rng.normal(0, 0.1, 48_000)]
    sounds[1][170_000:] += 0.5
    sounds[2][10_000:30_000] = 0
    for index, sound in enumerate(sounds):
        soundfile.write(tmp_path / f"{index}.wav", sound, 16000, subtype="FLOAT")
    return [
        {"audio": str(tmp_path / f"{index}.wav"), "prompt": "?" * (index + 1), "answer": ".", "source": "s"}
        for index in range(3)
    ]


@pytest.mark.parametrize("features", ["workers", "device"])
def test_log_mel_is_the_feature_extractors(processor, loud_and_long, features):
    batches = tiny_batches(datasets.Dataset.from_list(loud_and_long), processor, 3, features=features)
    (batch,) = load(batches)
    if features == "device":
        assert "input_features" not in batch
        assert batch["num_samples"].tolist() == [8000, 164_080, 48_000]
        batch = compute_features(batch, processor)
        assert "waveforms" not in batch and "num_samples" not in batch
    paths = [record["audio"] for step in batches.order.global_batches(0) for record in step]
    waveforms = [load_audio(path) for path in paths]
    expected = processor.feature_extractor(waveforms, 16000, return_tensors="pt", overflow="truncate")
    assert (batch["input_features"] - expected["input_features"]).abs().max() < 1e-4
    assert batches.counts.total("truncated") == 1


# -- Packing ------------------------------------------------------------------------------------------------------


def test_rows_are_packed_first_fit_decreasing():
    rows = [{"input_ids": [0] * length} for length in (3, 7, 5, 12, 4, 1)]
    lengths = [[len(row["input_ids"]) for row in packed] for packed in pack_rows(rows, 10)]
    assert lengths == [[12], [7, 3], [5, 4, 1]]


def gradients(model, batch) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    count = batch["labels"][:, 1:].ne(-100).sum()  # as Trainer counts
    loss = model(**batch, num_items_in_batch=count).loss
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("train_on_prompt", [False, True])
@pytest.mark.parametrize("connector", ["concatenation", "time_major", "frequency_major"])
def test_packed_training_equals_unpacked(connector, train_on_prompt, records):
    model, processor = tiny_model(connector).train(), tiny_processor(connector)
    table, slots = datasets.Dataset.from_list(records[:6]), len(processor.slot_pattern)
    options = {"train_on_prompt": train_on_prompt}
    (plain,) = load(tiny_batches(table, processor, 6, **options))
    (packed,) = load(tiny_batches(table, processor, 6, pack_to=2 * slots + 330, **options))
    assert len(plain["input_ids"]) == 6 > len(packed["input_ids"])
    assert packed["attention_mask"].min() == 0  # there is padding too
    assert packed["labels"].ne(-100).sum() == plain["labels"].ne(-100).sum()
    (loss, grads), (packed_loss, packed_grads) = gradients(model, plain), gradients(model, packed)
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    for name, expected in grads.items():
        scale = max(expected.abs().max().item(), 1.0)
        assert (packed_grads[name] - expected).abs().max() < 1e-5 * scale, name


def test_nothing_leaks_across_a_border(processor, clips):
    model = tiny_model()
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.5, 40_000).astype(np.float32))

    def row(waveform, text):
        ids = [258] * 64 + processor.tokenizer(text)["input_ids"]
        return {"input_ids": ids, "labels": list(ids), "waveform": waveform}

    tone = processor.feature_extractor.center(load_audio(str(clips / "5.wav")))[0]
    second = row(tone, "A tone.")
    outputs = {}
    for name, first in (("tone", row(tone, "Quiet!")), ("noise", row(noise, "Louder"))):
        assert len(first["input_ids"]) == 70
        batch = collate_rows([[first, second]], processor, pad_to_multiple_of=16)
        assert batch["seq_idx"][0].tolist() == [0] * 70 + [1] * 71 + [2] * 3
        # all is labelled, so that only the masking of what begins a sequence keeps the loss within it
        outputs[name] = model(**{**batch, "labels": batch["input_ids"].masked_fill(batch["seq_idx"] != 1, -100)})
    alone = model(**collate_rows([[second]], processor))
    for packed in outputs.values():
        assert torch.allclose(packed.logits[0, 70:141], alone.logits[0], atol=1e-4)
    assert (outputs["tone"].logits[0, :70] - outputs["noise"].logits[0, :70]).abs().max() > 0.1
    labels = torch.tensor(second["input_ids"])[1:]
    expected = torch.nn.functional.cross_entropy(alone.logits[0, :-1], labels)
    assert torch.allclose(outputs["noise"].loss, expected, atol=1e-5)
