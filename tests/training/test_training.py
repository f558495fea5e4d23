"""Training: tables, plain `Trainer`, parameter types, LoRA, resuming, two processes, augmentation."""

import math
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from peft import PeftModel, get_peft_model
from shared import NO_TORCHCODEC
from tiny import tiny_inputs, tiny_model, tiny_processor
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments

from modeling_sam import SamForConditionalGeneration
from processing_sam import SamDataCollator, load_audio
from sam_lab.data.plain_tables import clip_key, rows_with_audio
from sam_lab.training.augmentation import AugmentLogMel
from sam_lab.training.features import CachedRows, extract_features
from sam_lab.training.model import check_float32, follow_autocast, lora_config, save_checkpoint, upcast_trainable
from sam_lab.training.optimizers import warmup_cosine
from sam_lab.training.trainer import SamTrainer

ROOT = Path(__file__).resolve().parents[2]
CLIPS = ROOT / "examples" / "audio"
SOUNDS = ("dog.ogg", "crow.flac", "helicopter.wav")
# Answers of very different lengths: a mean of means over them is not the mean over their tokens.
ANSWERS = ("Dog barking.", "Crow.", "A helicopter is flying overhead, and it is a loud one.", "Dog.")
MEAN, STD = -4.268, 4.569
SILENCE = 0.46706  # what padding is after the normalisation: (0 - MEAN) / (2 STD)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def rows():
    """Four rows over three real clips."""
    return [
        {"audio": str(CLIPS / SOUNDS[index % 3]), "prompt": "What is it?", "answer": answer}
        for index, answer in enumerate(ANSWERS)
    ]


@pytest.fixture(scope="module")
def mapped(processor, rows):
    """The same rows, made into the model's columns by `dataset.map`."""
    table = datasets.Dataset.from_list(rows)
    return table.map(lambda row: processor(row["prompt"], row["audio"], row["answer"], overflow="truncate"))


def arguments(folder, **options) -> TrainingArguments:
    """`Trainer`'s defaults, on the CPU, quietly."""
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False}
    return TrainingArguments(str(folder), **{**quiet, "max_steps": 2, **options})


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(before, model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}


# -- Plain Trainer ------------------------------------------------------------------------------------------------


def test_trainers_defaults_on_mapped_columns(mapped, processor, tmp_path):
    args = arguments(tmp_path)
    assert args.remove_unused_columns  # the default, and the texts beside the model's columns do not disturb it
    trainer = Trainer(tiny_model(), args, SamDataCollator(processor), mapped)
    before = parameters(trainer.model)
    trainer.train()
    assert moved(before, trainer.model) == set(before)


def test_mapped_and_raw_columns_are_the_same_batch(mapped, rows, processor):
    collate = SamDataCollator(processor)
    raw, ready = collate(rows), collate([mapped[index] for index in range(4)])
    assert raw.keys() == ready.keys()
    for key in raw:
        assert torch.equal(raw[key], ready[key]), key


def test_the_loss_of_raw_columns_goes_down(rows, processor, tmp_path):
    args = arguments(tmp_path, max_steps=12, learning_rate=1e-2, logging_steps=1, remove_unused_columns=False)
    trainer = Trainer(tiny_model(), args, SamDataCollator(processor), datasets.Dataset.from_list(rows))
    trainer.train()
    assert losses(trainer)[-1] < 0.7 * losses(trainer)[0]


def test_evaluation_gives_the_loss_of_the_answers(rows, processor, tmp_path):
    args = arguments(tmp_path, remove_unused_columns=False, per_device_eval_batch_size=4)
    model = tiny_model()
    loss = Trainer(model, args, SamDataCollator(processor), eval_dataset=rows).evaluate()["eval_loss"]
    total = count = 0
    for row in rows:
        tokens = processor(row["prompt"], row["audio"], row["answer"], return_tensors="pt", overflow="truncate")
        labels = tokens.pop("labels")[0]
        logits = model(**tokens).logits[0, :-1].log_softmax(dim=-1)
        asked = labels[1:] != -100
        total -= logits[asked].gather(1, labels[1:][asked][:, None]).sum().item()
        count += int(asked.sum())
    assert count == sum(map(len, ANSWERS)) + 4  # bytes, and the end of text of each
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_the_error_says_who_removed_the_audio(rows, processor, tmp_path):
    collate = SamDataCollator(processor)
    trainer = Trainer(tiny_model(), arguments(tmp_path), collate, datasets.Dataset.from_list(rows))
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        trainer.train()
    # A column that Trainer knows gets past its own check, and so do datasets whose columns it cannot see.
    labelled = datasets.Dataset.from_list([{**row, "label": 1} for row in rows])
    for table in (labelled, labelled.to_iterable_dataset()):
        trainer = Trainer(tiny_model(), arguments(tmp_path), collate, table)
        with pytest.raises(
            ValueError, match=r"expected also 'audio'.*TrainingArguments\(remove_unused_columns=False\)"
        ):
            trainer.train()


def test_an_undecoded_audio_column(rows, processor):
    table = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(decode=False))
    assert isinstance(table[0]["audio"], dict)
    embedded = [{**row, "audio": {"bytes": Path(row["audio"]).read_bytes(), "path": None}} for row in rows]
    collate = SamDataCollator(processor)
    batch = collate(rows)
    for other in (collate([table[index] for index in range(4)]), collate(embedded)):
        assert torch.equal(batch["input_features"], other["input_features"])


def test_a_decoded_audio_column(rows, processor):
    pytest.importorskip("torchcodec.decoders", reason=NO_TORCHCODEC, exc_type=Exception)
    table = datasets.Dataset.from_list(rows[1:3]).cast_column("audio", datasets.Audio())
    assert hasattr(table[0]["audio"], "get_all_samples")
    collate = SamDataCollator(processor)
    decoded, read = collate([table[0], table[1]]), collate(rows[1:3])
    assert (decoded["input_features"] - read["input_features"]).abs().max() < 1e-3


# -- The same result by other ways --------------------------------------------------------------------------------


def test_resuming_equals_the_straight_run(mapped, processor, tmp_path):
    options = {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 2}
    straight = Trainer(tiny_model(), arguments(tmp_path / "a", **options), SamDataCollator(processor), mapped)
    straight.train()
    resumed = Trainer(tiny_model(seed=1), arguments(tmp_path / "b", **options), SamDataCollator(processor), mapped)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    assert losses(resumed)[-2:] == losses(straight)[-2:]
    assert moved(parameters(straight.model), resumed.model) == set()


def sgd_step(model, folder, rows, processor, **options):
    """One step of plain gradient descent without clipping: what moves is the gradient."""
    plain = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0}
    args = arguments(folder, remove_unused_columns=False, logging_steps=1, save_strategy="no", **plain, **options)
    trainer = Trainer(model, args, SamDataCollator(processor), rows)
    trainer.train()
    return losses(trainer)[0]


def largest_difference(model, other) -> float:
    pairs = zip(model.parameters(), other.parameters())
    return max((one - two).abs().max().item() for one, two in pairs)


def test_accumulation_does_not_change_the_loss(rows, processor, tmp_path):
    whole, split = tiny_model(), tiny_model()
    loss = sgd_step(whole, tmp_path, rows, processor, per_device_train_batch_size=4)
    accumulated = sgd_step(
        split, tmp_path, rows, processor, per_device_train_batch_size=1, gradient_accumulation_steps=4
    )
    assert accumulated == pytest.approx(loss, rel=1e-5)
    assert largest_difference(tiny_model(), whole) > 1e-2
    assert largest_difference(whole, split) < 1e-5


def test_recomputing_activations_does_not_change_the_loss(rows, processor, tmp_path):
    # transformers 5.13 knows the old name only
    new = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    models, calls = [], []
    for options in ({}, {name: True, f"{name}_kwargs": {"use_reentrant": False}}):
        model, count = tiny_model(), {}
        for part in (model.model.audio_tower.blocks[0].mlp, model.model.language_model.layers[0].mixer):
            part.register_forward_pre_hook(lambda part, _, count=count: count.update({part: count.get(part, 0) + 1}))
        loss = sgd_step(model, tmp_path, rows, processor, per_device_train_batch_size=4, **options)
        models.append((model, loss))
        calls.append(list(count.values()))
    assert calls == [[1, 1], [2, 2]]  # it did compute them twice, in both towers
    assert models[0][1] == models[1][1]
    assert largest_difference(models[0][0], models[1][0]) < 1e-6


# -- bf16 and LoRA ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored_in_bf16(tmp_path_factory):
    path = tmp_path_factory.mktemp("bf16")
    tiny_model().to(torch.bfloat16).save_pretrained(path)
    return path


def bf16_model(path):
    model = SamForConditionalGeneration.from_pretrained(path, dtype="auto")
    assert model.model.connector.linear_1.weight.dtype == torch.bfloat16
    return model


def train_in_bf16(model, folder, mapped, processor, **options):
    args = arguments(folder, bf16=True, learning_rate=1e-4, lr_scheduler_type="constant", **options)
    trainer = Trainer(model, args, SamDataCollator(processor), mapped)
    trainer.train()
    return trainer


def test_bf16_trains_the_connector_and_the_encoder_in_fp32(stored_in_bf16, mapped, processor, tmp_path):
    model = bf16_model(stored_in_bf16)
    model.model.language_model.requires_grad_(False)
    count = upcast_trainable(model)
    assert count == sum(
        p.numel() for part in ("audio_tower", "connector") for p in getattr(model.model, part).parameters()
    )
    before = parameters(model)
    trainer = train_in_bf16(model, tmp_path, mapped, processor)
    check_float32(model, trainer.optimizer)
    assert len(trainer.optimizer.state) == sum(p.requires_grad for p in model.parameters()) > 0
    for name, parameter in model.named_parameters():
        kept = name.startswith(("model.audio_tower", "model.connector")) or name.endswith(("A_log", ".D", "dt_bias"))
        assert parameter.dtype == (torch.float32 if kept else torch.bfloat16), name
    frozen = {name for name in before if "language_model" in name or "lm_head" in name}
    assert moved(before, model) == set(before) - frozen


def test_bf16_parameters_are_found_out(stored_in_bf16, mapped, processor, tmp_path):
    model = bf16_model(stored_in_bf16)
    trainer = train_in_bf16(model, tmp_path, mapped, processor)
    with pytest.raises(AssertionError, match=r"is trained in torch\.bfloat16, expected float32"):
        check_float32(model, trainer.optimizer)
    for parameter in model.parameters():  # and the state, where only that is left behind
        parameter.data = parameter.data.float()
    with pytest.raises(AssertionError, match=r"the optimiser keeps exp_avg in torch\.bfloat16"):
        check_float32(model, trainer.optimizer)


def test_nothing_trainable_is_an_error():
    with pytest.raises(ValueError, match="no trainable parameter"):
        upcast_trainable(tiny_model().requires_grad_(False))


@pytest.mark.parametrize("rank", [0, -1, 2.0, None])
def test_a_rank_is_a_positive_integer(rank):
    with pytest.raises(ValueError, match="rank"):
        lora_config(rank)


def test_bf16_lora_moves_the_adapters_only(stored_in_bf16, mapped, processor, tmp_path):
    model = get_peft_model(bf16_model(stored_in_bf16), lora_config(2, ["connector", "audio_tower"]))
    upcast_trainable(model)
    before = parameters(model)
    trainer = train_in_bf16(model, tmp_path, mapped, processor)
    check_float32(model, trainer.optimizer)
    adapters = {name for name in before if ".lora_" in name}
    assert len(adapters) == 2 * 2 * 2  # A and B of in_proj and out_proj in both layers
    copies = {name for name in before if ".modules_to_save." in name}
    assert {name.split(".modules_to_save.")[0].split(".")[-1] for name in copies} == {"connector", "audio_tower"}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved(before, model) == trained == adapters | copies
    base = model.get_base_model().model.language_model.layers[0].mixer.in_proj.base_layer.weight
    assert base.dtype == torch.bfloat16


def test_adapters_follow_autocast():
    """peft's cast to float32 under autocast changes no number, and stays where there is no autocast."""
    inputs = tiny_inputs()
    results = []
    for follow in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(tiny_model().to(torch.bfloat16), lora_config(2)).train()
        upcast_trainable(model)
        kinds = []
        for name, module in model.named_modules():
            if "lora_B" in name and isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=0.2)
            if "lora_dropout" in name and not list(module.children()):
                module.register_forward_pre_hook(lambda _, args, kinds=kinds: kinds.append(args[0].dtype))
        if follow:
            follow_autocast(model)
            follow_autocast(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        assert set(kinds) == {torch.bfloat16 if follow else torch.float32} and len(kinds) == 4
        results.append([loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
        model(**inputs)  # without autocast, float32 adapters on a bf16 model
    assert len(results[0]) == 1 + 2 * 2 * 2
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_our_trainer_computes_the_loss_alone(rows, processor, tmp_path):
    """The same losses and updates as Trainer's, with the head at the answers only."""
    models, found, seen = [], [], []
    for kind in (Trainer, SamTrainer):
        model, shapes = tiny_model(), []
        model.lm_head.register_forward_pre_hook(lambda _, args, shapes=shapes: shapes.append(args[0].shape[:-1]))
        args = arguments(tmp_path, remove_unused_columns=False, max_steps=2, logging_steps=1)
        trainer = kind(model, args, SamDataCollator(processor), datasets.Dataset.from_list(rows))
        trainer.train()
        models.append(model)
        found.append(losses(trainer))
        seen.append(shapes)
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert largest_difference(*models) < 1e-5
    assert all(len(shape) == 2 for shape in seen[0]) and all(len(shape) == 1 for shape in seen[1])
    assert sum(shape.numel() for shape in seen[1]) < 0.5 * sum(shape.numel() for shape in seen[0])


def summed_loss(outputs, labels, num_items_in_batch):
    """A custom loss, as Trainer's documentation has it."""
    logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("loss", [None, summed_loss], ids=["the model's loss", "a custom loss"])
def test_a_step_without_labels_changes_nothing(rows, processor, tmp_path, loss):
    """Its loss is 0, not 0 / 0, which would make every weight NaN."""

    def collate(batch):
        batch = SamDataCollator(processor)(batch)
        batch["labels"][:] = -100
        return batch

    model = tiny_model()
    before = parameters(model)
    options = {"max_steps": 2, "logging_steps": 1, "remove_unused_columns": False, "logging_nan_inf_filter": False}
    trainer = SamTrainer(model, arguments(tmp_path, **options), collate, rows, compute_loss_func=loss)
    trainer.train()
    assert losses(trainer) == [0.0, 0.0]
    assert not moved(before, model)


def test_lora_is_saved_merged_and_loaded(rows, processor, tmp_path):
    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    model = get_peft_model(SamForConditionalGeneration.from_pretrained(base), lora_config(4, ["connector"]))
    args = arguments(tmp_path / "run", remove_unused_columns=False, learning_rate=1e-2, max_steps=3)
    trainer = Trainer(model, args, SamDataCollator(processor), rows)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))

    batch = SamDataCollator(processor)(rows)
    model.eval()
    with torch.no_grad():
        trained, untrained = model(**batch).logits, tiny_model()(**batch).logits
        assert (trained - untrained).abs().max() > 0.1
        fresh = SamForConditionalGeneration.from_pretrained(base)
        reloaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
        assert torch.equal(reloaded(**batch).logits, trained)
        merged = model.merge_and_unload()
        assert type(merged) is SamForConditionalGeneration
        merged.save_pretrained(tmp_path / "merged")
        alone = SamForConditionalGeneration.from_pretrained(tmp_path / "merged")
        assert (alone(**batch).logits - trained).abs().max() < 1e-4


def test_a_checkpoint_of_trainer_loads_alone(mapped, rows, processor, tmp_path):
    args = arguments(tmp_path, save_steps=2)
    trainer = Trainer(tiny_model(), args, SamDataCollator(processor), mapped, processing_class=processor)
    trainer.train()
    model, info = AutoModel.from_pretrained(tmp_path / "checkpoint-2", output_loading_info=True)
    assert type(model) is SamForConditionalGeneration
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert moved(parameters(trainer.model), model) == set()
    loaded = AutoProcessor.from_pretrained(tmp_path / "checkpoint-2")
    ours, theirs = (SamDataCollator(each)(rows) for each in (processor, loaded))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


# -- Two processes ------------------------------------------------------------------------------------------------

TWO_PROCESSES = """
import os, sys
import torch
from peft import get_peft_model
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

root, clips, output = sys.argv[1:]
sys.path[:0] = [root, root + "/tests"]
from tiny import tiny_inputs, tiny_model, tiny_processor
from processing_sam import SamDataCollator
from sam_lab.common.processes import end_processes
from sam_lab.training.model import lora_config

# In order, so that the second process of two has the texts without a clip.
rows = [
    {"audio": clips + "/dog.ogg", "prompt": "What is it?", "answer": "Dog barking."},
    {"audio": None, "prompt": "What is one and one?", "answer": "Two, and that is all there is to say of it."},
] * 2

class InOrder(Trainer):
    def _get_train_sampler(self, *args):
        return SequentialSampler(rows)

results = {}
for rank in (0, 2):
    model = tiny_model()
    if rank:
        torch.manual_seed(0)
        model = get_peft_model(model, lora_config(rank, ["connector", "audio_tower"]))
    args = TrainingArguments(
        output, max_steps=2, optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", max_grad_norm=0,
        per_device_train_batch_size=2 // int(os.environ.get("WORLD_SIZE", 1)),
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None, ddp_find_unused_parameters=False,
        ddp_timeout=200, use_cpu=True, dataloader_pin_memory=False,
        remove_unused_columns=False, save_strategy="no", report_to="none", disable_tqdm=True,
    )
    trainer = InOrder(model, args, SamDataCollator(tiny_processor()), rows)
    trainer.train()
    trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    results[rank] = {"processes": args.world_size, "parameters": trained}
    if args.process_index == 0:
        torch.save(results, output + f"/{args.world_size}.pt")
end_processes()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for command in ([sys.executable, *two], [sys.executable]):
        done = subprocess.run(
            [*command, script, ROOT, CLIPS, tmp_path],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / f"{count}.pt") for count in (1, 2))
    for rank in (0, 2):
        assert (one[rank]["processes"], two[rank]["processes"]) == (1, 2)
        expected, found = one[rank]["parameters"], two[rank]["parameters"]
        assert expected.keys() == found.keys()
        for name in expected:
            assert torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5), name
    start = parameters(tiny_model())
    assert all(not torch.equal(start[name], value) for name, value in two[0]["parameters"].items())


# -- Features and augmentation ------------------------------------------------------------------------------------


def still(**options) -> AugmentLogMel:
    """An augmentation that does nothing but what is asked for (and turn the clip round in time)."""
    nothing = {"stretch": 0, "shift": 0, "scale": 0, "gain": 0, "mix": 0, "time_mask": 0, "frequency_mask": 0}
    return AugmentLogMel(MEAN, STD, **{**nothing, **options})


def normalised(log_power):
    return (log_power - MEAN) / (2 * STD)


def steady_clips(lengths=(600, 400), bins=128, frames=1024):
    """Clips that are the same at every frame `[B, frames, bins]`, padded as the feature extractor pads, and their
    log powers `[B, bins]`."""
    generator = torch.Generator().manual_seed(0)
    spectra = torch.rand(len(lengths), bins, generator=generator, dtype=torch.float64) * 8 - 10
    clips = torch.zeros(len(lengths), frames, bins, dtype=torch.float64)
    for clip, spectrum, length in zip(clips, spectra, lengths):
        clip[:length] = spectrum
    return normalised(clips).float(), spectra


def test_features_are_those_of_the_extractor(rows, processor):
    clips = [row["audio"] for row in rows[:3]]
    features = extract_features(clips, processor, num_threads=2)
    assert features.shape == (3, 1024, 128) and features.dtype == torch.float16
    expected = processor.feature_extractor([load_audio(clip) for clip in clips], 16000, return_tensors="pt")
    assert torch.equal(features, expected["input_features"].half())


def test_cached_rows_are_the_collators(rows, processor):
    cached = CachedRows(datasets.Dataset.from_list(rows), processor)
    assert len(cached) == 4
    assert len(cached.features) == 3  # the dog is in two rows and was read once
    collate = SamDataCollator(processor)
    batch, expected = collate([cached[index] for index in range(4)]), collate(rows)
    for key in ("input_ids", "labels", "attention_mask"):
        assert torch.equal(batch[key], expected[key]), key
    assert (batch["input_features"] - expected["input_features"]).abs().max() < 2e-3  # half precision


def test_clips_in_a_table_have_keys_in_every_form():
    sound = {"array": [0.0, 0.5], "sampling_rate": 16000}
    keys = [clip_key(b"one"), clip_key(b"two"), clip_key({"bytes": b"one", "path": "a.wav"}), clip_key(sound)]
    assert keys[0] == keys[2] and len(set(keys)) == 3
    table = datasets.Dataset.from_dict({"audio": [sound, sound], "answer": ["a", "b"]})
    assert len(rows_with_audio(table, "--train")) == 2


def test_clips_in_the_table_are_told_apart_by_their_content(rows, processor):
    """What `datasets` keeps as their path is a file's name, and many folders have a 1.wav."""
    contents = [Path(row["audio"]).read_bytes() for row in rows]
    embedded = [
        {**row, "audio": {"bytes": content, "path": path}}
        for row, content, path in zip(rows, contents, ("1.wav", "1.wav", None, "2.wav"))
    ]
    cached = CachedRows(datasets.Dataset.from_list(embedded), processor)
    assert len(cached.features) == 3  # the dog is in two rows
    expected = CachedRows(datasets.Dataset.from_list(rows), processor)
    for index in range(4):
        assert torch.equal(cached[index]["input_features"], expected[index]["input_features"]), index
    paths = [clip_key({"bytes": None, "path": "a/1.wav"}), clip_key("a/1.wav"), clip_key("b/1.wav"), clip_key(None)]
    assert paths == ["a/1.wav", "a/1.wav", "b/1.wav", None]


def test_rows_whose_audio_is_not_there(rows):
    content = {"bytes": b"RIFF", "path": "nowhere.wav"}  # in the table itself
    clips = [rows[0]["audio"], "nope.wav", None, "nope.wav", "a.wav", "b.wav", "c.wav"]
    table = datasets.Dataset.from_dict({"audio": clips, "answer": list("0123456")})
    assert rows_with_audio(table, "--train", 0.75)["answer"][:] == ["0", "2"]
    message = r"--train: the audio of 5 of 7 rows does not exist \(nope\.wav, a\.wav, b\.wav, \.\.\.\), more than max_missing=0.7 "
    with pytest.raises(ValueError, match=message):
        rows_with_audio(table, "--train", 0.7)
    with pytest.raises(ValueError, match=r"--train: the audio of 2 of 2 rows does not exist \(nope\.wav\), more"):
        rows_with_audio(table.select([1, 3]), "--train", 1.0)
    with pytest.raises(ValueError, match=r"--train: got no rows"):
        rows_with_audio(table.select([]), "--train")
    embedded = datasets.Dataset.from_dict({"audio": [content, {"bytes": None, "path": "nope.wav"}]})
    assert rows_with_audio(embedded, "--train", 0.5)["audio"][:] == [content]


def test_a_checkpoint_has_its_configuration_last(processor, tmp_path, monkeypatch):
    """So `config.json` means that the checkpoint is whole, however the writing ended."""
    folder, written, replace = tmp_path / "mine", [], os.replace

    def stop_at_config(source, target):
        written.append(Path(target).name)
        if len(written) == last:
            raise KeyboardInterrupt
        replace(source, target)

    model = tiny_model()
    save_checkpoint(model, processor, folder)
    whole = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= whole
    assert "# mine\n" in (folder / "README.md").read_text() and "unfinished" not in whole
    monkeypatch.setattr("os.replace", stop_at_config)
    last = len(whole)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(model, processor, folder)
    assert written[-1] == "config.json" and not (folder / "config.json").exists()
    last = 0
    save_checkpoint(model, processor, folder)
    assert {path.name for path in folder.iterdir()} == whole
    (folder / "README.md").write_text("# By its owner\n")
    save_checkpoint(model, processor, folder)
    assert (folder / "README.md").read_text() == "# By its owner\n"
    assert torch.equal(AutoModel.from_pretrained(folder).lm_head.weight, model.lm_head.weight)


def test_cached_rows_are_cut_as_ltu_cuts_with_and_without_a_clip(rows, processor, monkeypatch):
    """So many text tokens stay, slots not counted, and how many rows were cut is said."""
    from sam_lab.training import features as features_module

    said = []
    monkeypatch.setattr(features_module.logger, "warning", said.append)
    table = datasets.Dataset.from_list([rows[0], {**rows[0], "audio": None}, {**rows[0], "answer": "D"}])
    whole, slots = CachedRows(table, processor), len(processor.slot_pattern)
    cutoff = len(whole[1]["input_ids"]) - 4
    cut = CachedRows(table, processor, text_cutoff=cutoff)
    for index, expected in enumerate((slots + cutoff, cutoff, len(whole[2]["input_ids"]))):
        assert cut[index]["input_ids"] == whole[index]["input_ids"][:expected], index
        assert cut[index]["labels"] == whole[index]["labels"][:expected], index
    assert said == [f"2 of 3 rows are longer than {cutoff} text tokens and are cut."]


def test_cached_rows_without_the_clips_that_cannot_be_read(rows, processor, tmp_path, monkeypatch):
    from sam_lab.training import features as features_module

    said = []
    monkeypatch.setattr(features_module.logger, "warning", said.append)
    (tmp_path / "text.wav").write_text("This is no sound.")
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 11 * 16000), 16000)
    broken, long = ({**rows[0], "audio": str(tmp_path / name)} for name in ("text.wav", "long.wav"))
    table = [broken, rows[0], {**rows[0], "audio": None}, broken, *rows[1:], long, {**broken, "audio": "nope.wav"}]
    sources = ["b", "a", "a", "a", *"aaa", "b", "a"]
    cached = CachedRows(datasets.Dataset.from_list(table), processor, max_broken=2 / 9, sources=sources)
    expected = CachedRows(datasets.Dataset.from_list([rows[0], table[2], *rows[1:], long]), processor)
    assert len(cached) == len(expected) == 6 and len(cached.features) == 4
    for index in range(6):
        one, other = cached[index], expected[index]
        assert (one["input_ids"], one["labels"]) == (other["input_ids"], other["labels"]), index
        assert ("input_features" in one) == (index != 1)
        assert index == 1 or torch.equal(one["input_features"], other["input_features"]), index
    none = {"cut": 0, "unanswered": 0}
    assert cached.report() == {
        "a": {"seen": 7, "broken": 2, "truncated": 0, **none},
        "b": {"seen": 2, "broken": 1, "truncated": 1, **none},
    }
    assert expected.report() == {"unnamed": {"seen": 6, "broken": 0, "truncated": 1, **none}}
    (warning,) = said
    assert warning.startswith("3 of 9 rows with unreadable audio are skipped") and "text.wav" in warning


def test_cached_rows_with_too_many_clips_that_cannot_be_read(rows, processor):
    table = datasets.Dataset.from_list([*rows, {**rows[0], "audio": "nope.wav"}, {**rows[0], "audio": "gone.wav"}])
    message = r"max_broken: the audio of 2 of 6 records cannot be read \(unnamed: 2 of 6\), .* 1\.00%; .*nope\.wav"
    with pytest.raises(ValueError, match=message):
        CachedRows(table, processor)
    assert len(CachedRows(table.select(range(5)), processor)) == 4  # one more than the share
    with pytest.raises(ValueError, match="max_broken: the audio of 1 of 5 records"):
        CachedRows(table.select(range(5)), processor, max_broken=0.0)
    with pytest.raises(ValueError, match="sources: got 4 for a table of 5 rows"):
        CachedRows(table.select(range(5)), processor, sources=["a"] * 4)
    with pytest.raises(
        ValueError, match=r"none of the 2 records that were read has a label, .* the audio of 2 cannot"
    ):
        CachedRows(table.select([4, 5]), processor, max_broken=1.0)
    with pytest.raises(ValueError, match="max_broken: got 2, expected a share from 0 to 1"):
        CachedRows(table, processor, max_broken=2)


@pytest.mark.parametrize("num_frames", [None, 500])
def test_augmentation_keeps_shape_and_padding(rows, processor, num_frames):
    features = SamDataCollator(processor)(rows)["input_features"]
    torch.manual_seed(0)
    augmented = AugmentLogMel(MEAN, STD)(features.half(), num_frames)
    assert augmented.shape == (4, num_frames or 1024, 128) and augmented.dtype == torch.float32
    assert augmented.isfinite().all()
    seconds = [len(load_audio(row["audio"])) / 16000 for row in rows]
    for clip, length in zip(augmented, seconds):
        sound = (clip - SILENCE).abs().amax(dim=1) > 1e-4
        end = int(sound.nonzero().max()) + 1
        assert 0.78 * length * 100 - 4 <= end <= min(1.22 * length * 100, len(clip))
        assert ((clip[end:] - SILENCE).abs() < 1e-5).all()


def test_an_augmentation_of_nothing_turns_the_clip_round():
    clips = torch.rand(1, 1024, 128) * 2 - 1
    clips[:, 700:] = SILENCE
    result = still()(clips)
    (start,) = (clips[0, :700] - result[0, 0]).abs().amax(dim=1).lt(1e-5).nonzero()[0].tolist()
    assert torch.allclose(result[0, :700], clips[0, :700].roll(-start, 0), atol=1e-5)
    assert torch.allclose(result[0, 700:], torch.full((324, 128), SILENCE), atol=1e-5)


def test_a_clip_that_is_not_turned_begins_where_it_did():
    clips = torch.rand(3, 1024, 128) * 2 - 1
    clips[:, 700:] = SILENCE
    assert torch.allclose(still(turn=False)(clips), clips, atol=1e-5)


def test_a_mixture_is_the_sum_of_the_powers():
    clips, spectra = steady_clips()
    mixed = still(mix=1.0, snr=(6.0, 6.0))(clips)
    power = spectra.exp().numpy()
    for index, other in ((0, 1), (1, 0)):
        # the other clip, so much louder or weaker that its mean power is 6 dB below this one's
        weaker = power[other] * power[index].mean() / power[other].mean() / 10**0.6
        both = normalised(np.log(power[index] + weaker))
        assert mixed[index, 100].numpy() == pytest.approx(both, abs=1e-5)
    assert torch.equal(mixed[0, 400:600], still()(clips)[0, 400:600])  # there the other is over
    assert torch.allclose(mixed[1, 400:], torch.tensor(SILENCE), atol=1e-5)


def test_gain_is_in_decibels():
    clips, spectra = steady_clips()
    torch.manual_seed(3)
    difference = (still(gain=8.0)(clips)[:, 50].double() - normalised(spectra)) * 2 * STD  # of log power
    decibels = 10 * difference / math.log(10)
    assert torch.allclose(decibels, decibels[:, :1].expand_as(decibels), atol=1e-3)  # the same in every bin
    assert decibels.abs().max() <= 8 + 1e-3 and decibels.abs().min() > 0.05


def test_stripes_are_erased_in_time_and_frequency():
    clips, _ = steady_clips()
    torch.manual_seed(0)
    for options, axis, widest in (({"time_mask": 0.15}, 1, 2 * 0.15 * 600 + 2), ({"frequency_mask": 20}, 0, 42)):
        changed = (still(**options)(clips)[0, :600] - clips[0, :600]).abs() > 1e-5
        stripes = changed.all(dim=axis)
        assert 0 < stripes.sum() <= widest
        assert torch.equal(changed, (stripes[:, None] if axis == 1 else stripes).expand_as(changed))


def test_augmentation_follows_the_seed():
    clips, _ = steady_clips()
    torch.manual_seed(5)
    first = AugmentLogMel()(clips)
    torch.manual_seed(5)
    assert torch.equal(AugmentLogMel()(clips), first)
    assert not torch.equal(AugmentLogMel()(clips), first)


def test_only_training_batches_are_augmented(mapped, processor, tmp_path):
    class Loud:
        seen = 0

        def __call__(self, features):
            self.seen += 1
            return features + 1

    augment, heard = Loud(), []
    model = tiny_model()
    model.model.audio_tower.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0].mean().item()))
    args = arguments(tmp_path, max_steps=1, per_device_train_batch_size=4, per_device_eval_batch_size=4)
    trainer = SamTrainer(model, args, SamDataCollator(processor), mapped, mapped, augment=augment)
    trainer.train()
    trainer.evaluate()
    assert augment.seen == 1
    assert heard[0] == pytest.approx(heard[1] + 1, abs=1e-4)


def test_the_learning_rate_rises_and_falls():
    assert warmup_cosine(0.0) < 0.01
    assert warmup_cosine(0.05) == pytest.approx(0.994, abs=1e-3)
    assert warmup_cosine(0.5) == pytest.approx(0.5)
    assert warmup_cosine(1.0) == warmup_cosine(1.5) == 0


# -- What cannot be learned ---------------------------------------------------------------------------------------


def small_trainer(folder, processor, rows, model=None):
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=2, report_to="none", use_cpu=True, save_strategy="no"
    )
    model = tiny_model() if model is None else model
    return SamTrainer(model, arguments, SamDataCollator(processor), train_dataset=rows, processing_class=processor)


def test_an_epoch_without_labels_fails_in_our_trainer(tmp_path):
    ids = tiny_inputs(clips=0)["input_ids"][0].tolist()
    rows = datasets.Dataset.from_list([{"input_ids": ids, "labels": [-100] * len(ids)}] * 5)
    with pytest.raises(ValueError, match="labels: got only -100 in all 3 batches"):
        small_trainer(tmp_path, tiny_processor(), rows).train()


def test_more_tokens_than_embeddings_are_refused(tmp_path):
    processor = tiny_processor()
    small_trainer(tmp_path, processor, [], tiny_model(vocab_size=259))
    processor.tokenizer.add_tokens(["one more"])
    with pytest.raises(ValueError, match=r"processing_class: its tokenizer has ids up to 259, expected at most 258"):
        small_trainer(tmp_path, processor, [], tiny_model(vocab_size=259))
