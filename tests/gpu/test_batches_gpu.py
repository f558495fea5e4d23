"""Training batches on the GPU: log-mel there, packed rows and the loss through the kernels, without waiting."""

import warnings
from pathlib import Path

import datasets
import pytest
import torch
from peft import get_peft_model
from tiny import tiny_batches, tiny_config, tiny_model, tiny_processor
from transformers import TrainerCallback, TrainingArguments

from modeling_sam import SamForConditionalGeneration, positions_with_loss
from processing_sam import SamFeatureExtractor, load_audio
from sam_lab.data.collation import RowCollator, collate_rows, compute_features
from sam_lab.training.model import check_float32, lora_config, upcast_trainable
from sam_lab.training.trainer import SamTrainer

CLIPS = sorted(
    path
    for path in (Path(__file__).parents[2] / "examples" / "audio").iterdir()
    if path.suffix in {".wav", ".ogg", ".flac"}
)
# 8 heads: the outputs of in_proj are a multiple of 8, so the fused layer runs
FUSED = {"num_heads": 8, "head_dim": 16, "hidden_size": 64}
# Largest relative error, norm of the difference over norm of the truth: Triton's float32 products are TF32.
LOSS, GRADIENT = 1e-3, 2e-2


def records(number):
    return [
        {
            "audio": str(CLIPS[index % len(CLIPS)]),
            "prompt": "What do you hear?" + " Tell me." * (index % 3),
            "answer": CLIPS[index % len(CLIPS)].stem.replace("_", " ") * (1 + index % 2),
            "source": "examples",
            "kind": "open",
        }
        for index in range(number)
    ]


def error(ours, truth):
    return float((ours.double().cpu() - truth.double().cpu()).norm() / truth.double().cpu().norm().clamp(min=1e-12))


def is_close(ours, truth, relative):
    return float((ours - truth).norm()) <= relative * float(truth.norm()) + 1e-5


def gradients(model):
    found = {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_log_mel_of_waveforms_equals_the_cpus():
    extractor = SamFeatureExtractor()
    clips = [extractor.center(load_audio(path))[0] for path in CLIPS]
    waveforms = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    num_samples = torch.tensor([len(clip) for clip in clips])
    cpu = extractor.log_mel(waveforms, num_samples)
    with torch.autocast("cuda", dtype=torch.bfloat16):  # which must not reach it
        gpu = extractor.log_mel(waveforms.cuda(), num_samples.cuda())
    assert gpu.is_cuda and gpu.dtype == torch.float32
    # Where a frame is nearly silent, rounding of 1e-7 in the waveform alone moves these clips' log-mel by up to 1e-3.
    difference = (gpu.cpu() - cpu).abs()
    assert difference.max() < 3e-3 and difference.mean() < 1e-5


@pytest.mark.parametrize("pack_to", [None, 400])
def test_features_on_the_device_train_as_those_of_workers(pack_to, tmp_path):
    """Through SamTrainer on the GPU, with a worker and pinned memory; the same steps from log-mel of the worker."""
    processor, losses = tiny_processor(), {}
    table = datasets.Dataset.from_list(records(12))
    for features in ("workers", "device"):
        torch.manual_seed(0)
        model = get_peft_model(tiny_model(**FUSED), lora_config(4, ["connector", "audio_tower"]))
        upcast_trainable(model)
        before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        args = TrainingArguments(
            str(tmp_path / features),
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            bf16=True,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_num_workers=1,
            remove_unused_columns=False,
        )
        assert args.device.type == "cuda"
        args._n_gpu = 1  # also where there are two: DataParallel is not what is tested
        batches = tiny_batches(table, processor, 3, accumulation=2, epochs=2, features=features, pack_to=pack_to)
        trainer = SamTrainer(model, args, train_batches=batches)
        trainer.train()
        check_float32(model, trainer.optimizer)
        assert all(not torch.equal(before[n], p.cpu()) for n, p in model.named_parameters() if n in before)
        losses[features] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses["device"]) == 4 and losses["device"][-1] < losses["device"][0]
    assert losses["device"][0] == pytest.approx(losses["workers"][0], rel=2e-3)
    assert losses["device"] == pytest.approx(losses["workers"], rel=3e-2)  # bf16, and updates that amplify it


def rows_of(processor, number):
    rows = RowCollator(processor).text_rows(records(number))
    for row, record in zip(rows, records(number)):
        row["waveform"] = processor.feature_extractor.center(load_audio(record["audio"]))[0]
        row.pop("is_cut")
    return rows


@pytest.mark.parametrize("connector", ["concatenation", "time_major"])
def test_packed_equals_unpacked_through_the_kernels(connector, count_fused):
    processor = tiny_processor(connector)
    rows = rows_of(processor, 5)
    model = tiny_model(connector, **FUSED).cuda().train()
    results = []
    for packed in ([[row] for row in rows], [rows[:2], rows[2:]]):
        batch = {name: value.cuda() for name, value in collate_rows(packed, processor).items()}
        loss = model(**batch, num_items_in_batch=100).loss
        loss.backward()
        results.append((loss.detach(), gradients(model)))
        assert len(count_fused) == 2, "the fused layer must have run"
        count_fused.clear()
    (apart, expected), (together, found) = results
    assert error(together, apart) < LOSS
    assert found.keys() == expected.keys() and len(found) > 20
    for name, gradient in found.items():
        assert is_close(gradient, expected[name], GRADIENT), (name, error(gradient, expected[name]))


@pytest.mark.parametrize("autocast", [False, True])
def test_the_loss_alone_equals_the_loss_of_all_logits(autocast):
    processor = tiny_processor()
    batch = {
        name: value.cuda() for name, value in collate_rows([[r] for r in rows_of(processor, 4)], processor).items()
    }
    model = tiny_model(**FUSED).cuda().train()
    results = []
    ahead = positions_with_loss(batch["labels"].cpu()).cuda()
    for extra in ({}, {"loss_positions": positions_with_loss(batch["labels"])}, {"loss_positions": ahead}):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            loss = model(**batch, **extra).loss
        loss.backward()
        results.append((loss.detach(), gradients(model)))
    for loss, found in results[1:]:
        assert error(loss, results[0][0]) < (1e-3 if autocast else 1e-5)
        for name, gradient in found.items():
            truth = results[0][1][name]
            assert is_close(gradient, truth, 5e-2 if autocast else GRADIENT), (name, error(gradient, truth))


def test_a_batch_without_labels_gives_zero_and_zero_gradients():
    processor = tiny_processor()
    batch = {
        name: value.cuda() for name, value in collate_rows([[r] for r in rows_of(processor, 2)], processor).items()
    }
    batch["labels"] = torch.full_like(batch["labels"], -100)
    model = tiny_model(**FUSED).cuda().train()
    loss = model(**batch, loss_positions=positions_with_loss(batch["labels"])).loss
    loss.backward()
    found = gradients(model)
    assert loss.item() == 0.0 and found.keys() == dict(model.named_parameters()).keys()
    assert all(not gradient.any() for gradient in found.values())


def test_a_step_does_not_wait_for_the_gpu():
    """Forward with the loss alone, and backward: no call that makes Python wait; a look at the slots is put off."""
    processor = tiny_processor()
    batch = collate_rows([[row] for row in rows_of(processor, 3)], processor)
    batch["loss_positions"] = positions_with_loss(batch["labels"])
    batch = {name: value.cuda() for name, value in batch.items()}
    model = get_peft_model(tiny_model(**FUSED), lora_config(4, ["connector", "audio_tower"])).cuda().train()
    upcast_trainable(model)

    def step():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(**batch, num_items_in_batch=50).loss
        loss.backward()

    step()  # kernels are compiled and tuned, which waits
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "synchroniz" in str(warning.message)]
    assert not waits, [f"{warning.filename}:{warning.lineno}: {warning.message}" for warning in waits]


class WatchWaits(TrainerCallback):
    """From the second step's end to the last one's, calls that make Python wait for the GPU are warned of."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:  # kernels are compiled and tuned, optimiser and loader are warm
            torch.cuda.set_sync_debug_mode("warn")
        if state.global_step == state.max_steps:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("features", ["workers", "device"])
def test_no_step_of_a_training_waits_for_the_gpu(features, tmp_path):
    """Batches, their count of labels, clipping, the optimiser: all that lies between two steps of a Trainer."""
    table = datasets.Dataset.from_list(records(8))  # equal batches in each epoch: nothing new is tuned
    model = get_peft_model(tiny_model(**FUSED), lora_config(4, ["connector", "audio_tower"]))
    upcast_trainable(model)
    args = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        bf16=True,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=1,
        remove_unused_columns=False,
    )
    args._n_gpu = 1
    batches = tiny_batches(table, tiny_processor(), 4, accumulation=2, epochs=5, features=features)
    trainer = SamTrainer(model, args, train_batches=batches, callbacks=[WatchWaits()])
    steps = []
    inner = trainer.training_step

    def training_step(*inputs):
        steps.append(torch.cuda.get_sync_debug_mode())
        return inner(*inputs)

    trainer.training_step = training_step
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.train()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert steps == [0] * 4 + [1] * 6
    waits = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
    assert not waits, [f"{warning.filename}:{warning.lineno}" for warning in waits]


@pytest.mark.parametrize("change", ["a slot too few", "a clip too few"])
def test_slots_that_do_not_match_are_found_in_training(change):
    processor = tiny_processor()
    batch = collate_rows([[row] for row in rows_of(processor, 2)], processor)
    if change == "a slot too few":
        batch["input_ids"][0, 0] = 5
    else:
        batch["input_features"] = batch["input_features"][:1]
    model = tiny_model(**FUSED).cuda().train()
    with pytest.raises(ValueError, match=r"audio slots, (1|2) clip"):
        model(**{name: value.cuda() for name, value in batch.items()})
    torch.cuda.synchronize()  # the GPU is still well


def test_a_training_step_with_flash_attention_is_close_to_sdpa():
    pytest.importorskip("flash_attn")
    processor = tiny_processor()
    batch = compute_features(collate_rows([[row] for row in rows_of(processor, 3)], processor, "device"), processor)
    batch = {name: value.cuda() for name, value in batch.items()}
    results = {}
    for attention in ("sdpa", "flash_attention_2"):
        config = tiny_config(**FUSED)
        config.audio_config.hidden_size, config.audio_config.num_attention_heads = 128, 2
        torch.manual_seed(0)
        model = SamForConditionalGeneration._from_config(config, attn_implementation={"audio_config": attention})
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2 and "conv1d" not in name:
                    parameter.normal_(std=1.5 / parameter[0].numel() ** 0.5)
        assert model.model.audio_tower.config._attn_implementation == attention
        model = model.cuda().train()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(**batch, loss_positions=positions_with_loss(batch["labels"])).loss
        loss.backward()
        results[attention] = (loss.detach(), gradients(model))
    (expected, truth), (loss, found) = results["sdpa"], results["flash_attention_2"]
    assert error(loss, expected) < 5e-3
    qkv = [name for name in found if "qkv.weight" in name]
    assert len(qkv) == 2 and all(bool(found[name].abs().max() > 0) for name in qkv)
    for name in [*qkv, "model.connector.linear_1.weight"]:
        assert error(found[name], truth[name]) < 6e-2, (name, error(found[name], truth[name]))
