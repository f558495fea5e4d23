"""Recipes and curricula: files, parts that train, hand-overs, resuming, what is kept, two processes."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import yaml
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub
from peft import PeftModel
from safetensors.torch import load_file, save_file
from shared import PAPER_TABLES, needs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_config, tiny_inputs, tiny_model, tiny_processor
from transformers import TrainerCallback

from modeling_sam import SamAudioModel, SamForConditionalGeneration
from processing_sam import PROMPT_TEMPLATE, SamDataCollator
from sam_lab.common.files import locked
from sam_lab.data.records import records_dataset, write_records
from sam_lab.training import curriculum as curriculum_module
from sam_lab.training import sources as sources_module
from sam_lab.training import stages as stages_module
from sam_lab.training.curriculum import claim, run_recipe
from sam_lab.training.library import RECIPES, recipe_names
from sam_lab.training.model import (
    choose_trainable,
    encoder_folder,
    load_base,
    load_weights,
    merged_model,
    with_adapters,
)
from sam_lab.training.plan import plan, plan_text
from sam_lab.training.recipe import load_recipe
from sam_lab.training.stages import last_checkpoint
from sam_lab.training.trainer import SecondsCallback

ROOT = Path(__file__).resolve().parents[2]
STAGE = "{name: s, trains: [connector], learning_rate: 1e-3, epochs: 1, data: [d]}"
SMALL = f"model: m\ndata: {{d: {{path: p}}}}\nstages: {{1: {STAGE}}}\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model stored in bf16, tables and a folder of records of eight noises."""
    folder = tmp_path_factory.mktemp("world")
    model = tiny_model()
    for name, parameter in model.named_parameters():
        if not name.endswith(("A_log", ".D", "dt_bias")):
            parameter.data = parameter.data.bfloat16()
    model.save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(8):
        soundfile.write(folder / f"{index}.wav", rng.uniform(-0.1, 0.1, 4000), 16000)
        rows.append({"audio": f"{index}.wav", "prompt": "What?", "answer": "A noise" + "!" * index})
    for name, audio in (("rows", True), ("text", False)):
        with open(folder / f"{name}.csv", "w", newline="") as handle:
            writer = csv.DictWriter(handle, ["audio", "prompt", "answer"])
            writer.writeheader()
            writer.writerows([row if audio else {**row, "audio": ""} for row in rows])
    records = [{**row, "audio": str(folder / row["audio"]), "source": "noise", "kind": "closed"} for row in rows]
    write_records(records, folder / "records")
    return folder


def toy(world, *overrides):
    """`toy.yaml` on the noises, with steps 4, 4, 2, 2."""
    data = [f"data.{name}={{path: records, format: records}}" for name in ("classification", "closed", "mix")]
    return load_recipe("toy", [f"model={world / 'model'}", f"data_root={world}", "validation=null", *data, *overrides])


def losses(folder) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def tensors(folder) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def same(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class Killed(Exception):
    pass


class Kill(TrainerCallback):
    """Ends the process, as far as the training can tell, at a step of a stage."""

    def __init__(self, stage: int, step: int):
        self.stage, self.step = stage, step

    def on_step_end(self, args, state, control, **kwargs):
        if args.output_dir.endswith(f"stage-{self.stage}") and state.global_step == self.step:
            raise Killed


# -- Recipes ------------------------------------------------------------------------------------------------------


def small(folder, text=SMALL, name="small.yaml"):
    (folder / name).write_text(text)
    return folder / name


def test_a_base_is_merged_key_by_key_and_lists_are_replaced(tmp_path):
    small(
        tmp_path,
        "model: m\nlora_rank: 8\nmicro_batch_size: 4\ndata: {d: {path: p, rows: 7}, e: {path: q}}\n"
        "stages:\n  1: {name: one, trains: [connector, lora], learning_rate: 1e-3, epochs: 2, data: [d, e]}\n"
        "  2: {name: two, trains: [lora], learning_rate: 1e-4, epochs: 1, data: [d], micro_batch_size: 2}\n",
        "base.yaml",
    )
    path = small(tmp_path, "base: base.yaml\nlora_rank: 256\nstages: {1: {data: [e], learning_rate: 2e-3}}\n")
    recipe = load_recipe(path, ["stages.2.epochs=0.5", "data.d.path=elsewhere", "micro_batch_size=16"])
    one, two = recipe.stages
    assert (recipe.name, recipe.model, recipe.lora_rank) == ("small", "m", 256)
    assert (one.number, one.trains, one.learning_rate, one.epochs) == (1, ["connector", "lora"], 2e-3, 2.0)
    assert one.data == ["e"] and two.data == ["d"]
    assert (two.epochs, two.learning_rate) == (0.5, 1e-4)
    assert (one.micro_batch_size, two.micro_batch_size) == (16, 2)  # the recipe's, and its own
    assert (recipe.data["d"].path, recipe.data["d"].rows) == ("elsewhere", 7)
    assert recipe.previous(one) is None and recipe.previous(two) is one


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL + "lerning_rate: 1\n", r"small\.yaml: unknown key lerning_rate; expected one of .*lora_rank"),
        (SMALL.replace("epochs", "epoch"), r"small\.yaml: unknown key stages\.1\.epoch; "),
        (SMALL.replace("path: p", "path: p, fromat: table"), r"small\.yaml: unknown key data\.d\.fromat; "),
        (
            SMALL.replace("path: p", "path: p, format: csv"),
            r"small\.yaml: data\.d\.format: got 'csv', expected one of",
        ),
        (SMALL.replace("1e-3", "fast"), r"small\.yaml: stages\.1\.learning_rate: got 'fast', expected a number"),
        (SMALL.replace("1e-3", "-1e-3"), r"small\.yaml: stages\.1\.learning_rate: got -0\.001, expected a positive"),
        (
            SMALL.replace("[connector]", "[conector]"),
            r"stages\.1\.trains\[0\]: got 'conector', expected one of connec",
        ),
        (SMALL.replace("[connector]", "[]"), r"stages\.1\.trains: got an empty list"),
        (SMALL.replace("[connector]", "[lora]"), r"stages\.1\.trains: got 'lora' with lora_rank 0"),
        (
            SMALL.replace("[connector]", "[language_model]") + "lora_rank: 2\n",
            r"got 'language_model' with a lora_rank",
        ),
        (SMALL.replace("[connector]", "[encoder]") + "joint_encoder: false\n", r"'encoder' with joint_encoder false"),
        (SMALL.replace("[d]", "[e]"), r"stages\.1\.data: got 'e', expected some of the data sources d"),
        (SMALL.replace("[d]", "[d], weights: [1, 2]"), r"stages\.1\.weights: got \[1\.0, 2\.0\]"),
        (SMALL.replace("epochs: 1", "epochs: 1, max_seconds: 9"), r"exactly one of epochs and max_seconds"),
        (SMALL.replace("name: s, ", ""), r"small\.yaml: stages\.1\.name is missing"),
        (SMALL.replace("model: m", ""), r"small\.yaml: model is missing"),
        (SMALL + "seed: true\n", r"small\.yaml: seed: got True, expected an integer"),
        (SMALL + "seed: 1\nseed: 2\n", r"small\.yaml: not a YAML file: the key seed comes twice"),
        (SMALL + "save_steps: 30\nlogging_steps: 20\n", r"save_steps: got 30 with logging_steps 20"),
        (SMALL + "validation: v\n", r"validation: got 'v', expected one of the data sources d"),
        (SMALL + "lora_dropout: 2\n", r"lora_dropout: got 2, expected a number from 0 to less than 1"),
        (SMALL + "base: ../other.yaml\n", r"base: got '\.\./other\.yaml', expected the name of a file of the same"),
        (SMALL + "base: small.yaml\n", r"base: the files .*small\.yaml name each other"),
        (SMALL.replace("1e-3", ".inf"), r"stages\.1\.learning_rate: got inf, expected a finite number"),
        (SMALL + "adam_beta2: 1\n", r"adam_beta2: got 1, expected a number from 0 to less than 1"),
        (SMALL + "seed: 4294967296\n", r"seed: got 4294967296, expected an integer from 0"),
        (SMALL + "validation: d\nevaluation_rows: 0\n", r"evaluation_rows: got 0 with a validation"),
        (
            SMALL.replace("epochs: 1", "max_seconds: 1, hand_over_step: 3"),
            r"stages\.1\.hand_over_step: got it with max_seconds",
        ),
        ("- 1\n", r"small\.yaml: got list, expected a mapping"),
        ("a: [\n", r"small\.yaml: not a YAML file"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named_with_its_file(tmp_path, text, message):
    load_recipe(small(tmp_path))
    with pytest.raises(ValueError, match=message):
        load_recipe(small(tmp_path, text))


def test_a_file_in_another_encoding_is_named_and_merge_keys_are_yaml(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(f"# \xe9\n{SMALL}".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.yaml: not a YAML file"):
        load_recipe(tmp_path / "latin.yaml")
    first = STAGE.replace("{", "&first {", 1)
    text = f"model: m\ndata: {{d: {{path: p}}}}\nstages:\n  1: {first}\n  2: {{<<: *first, learning_rate: 1e-4}}\n"
    assert [stage.learning_rate for stage in load_recipe(small(tmp_path, text)).stages] == [1e-3, 1e-4]


def test_an_error_names_the_file_that_has_it(tmp_path):
    small(tmp_path, SMALL + "sed: 1\n", "base.yaml")
    with pytest.raises(ValueError, match=r"base\.yaml: unknown key sed"):
        load_recipe(small(tmp_path, "base: base.yaml\nseed: 1\n"))
    with pytest.raises(ValueError, match=r"--set stages\.1\.epoch=2: unknown key stages\.1\.epoch"):
        load_recipe(small(tmp_path), ["stages.1.epoch=2"])
    with pytest.raises(ValueError, match=r"--set: got 'seed', expected KEY=VALUE"):
        load_recipe(small(tmp_path), ["seed"])
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing\.yaml"):
        load_recipe(tmp_path / "nothing.yaml")
    with pytest.raises(FileNotFoundError, match=r"small\.yaml: base: there is no file .*gone\.yaml"):
        load_recipe(small(tmp_path, "base: gone.yaml\n"))


def test_a_recipe_is_found_by_its_name_or_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe("e6", ["seed=3"]).name == "E6" and load_recipe("e6", ["seed=3"]).seed == 3
    with pytest.raises(
        ValueError, match=r"recipe: got 'E77', expected one of .*E9, .*toy, .*or the path of a YAML file;"
    ):
        load_recipe("E77")
    with pytest.raises(FileNotFoundError, match=r"there is no file 'E6\.yaml'; .*without a suffix, such as E6"):
        load_recipe("E6.yaml")
    small(tmp_path, "base: ltu.yaml\nmodel: mine\n", "mine.yaml")
    mine = load_recipe("mine.yaml")
    assert (mine.name, mine.model, mine.stages) == ("mine", "mine", load_recipe("ltu").stages)
    small(tmp_path, SMALL + "lora_rank: 3\n", "ltu.yaml")  # found beside the file first
    assert load_recipe("mine.yaml").lora_rank == 3 and load_recipe("ltu").lora_rank == 8
    small(tmp_path, SMALL, "bare")
    assert load_recipe("bare").name == "bare"


def test_ltus_curriculum():
    recipe = load_recipe("ltu")
    assert [stage.learning_rate for stage in recipe.stages] == [1e-3, 1e-4, 1e-4, 1e-4]
    assert [stage.epochs for stage in recipe.stages] == [2, 2, 1, 1]
    assert [stage.trains for stage in recipe.stages] == [["connector"]] + [["connector", "encoder", "lora"]] * 3
    assert {(s.global_batch_size, s.warmup_steps, s.text_cutoff) for s in recipe.stages} == {(256, 100, 108)}
    assert [stage.hand_over_step for stage in recipe.stages] == [None] * 4
    assert (recipe.lora_dropout, recipe.weight_decay, recipe.max_grad_norm) == (0.05, 0.0, 1.0)
    assert (recipe.schedule, recipe.precision, recipe.encoder_attention) == ("linear", "bf16", "flash_attention_2")
    assert [recipe.data[name].rows for name in ("closed", "mix")] == [1_917_894, 1_917_894 + 3_763_814]


@needs(PAPER_TABLES)
def test_the_recipes_are_the_papers_experiments():
    tables = json.loads(PAPER_TABLES.read_text())
    rows = [row for row in tables["table1"]["rows"] if "experiment" in row]
    assert [row["experiment"] for row in rows] == [f"E{number}" for number in range(1, 19)]
    for row in rows:
        recipe = load_recipe(f"{row['experiment']}")
        assert f"SAM-{recipe.size.upper()}" == row["model"].upper(), row
        assert (recipe.lora_rank, recipe.connector) == (row["lora_rank"], row["connector"]), row
        frozen = row["audio_encoder"] == "frozen in every stage"
        assert frozen or row["audio_encoder"] == "trained jointly"
        assert recipe.joint_encoder is not frozen
        assert ["encoder" in stage.trains for stage in recipe.stages] == [False] + [not frozen] * 3, row
        last = {"OpenAQA": "mix", "OpenReasonAQA": "openreasonaqa"}[row["data"]]
        names = ["classification", "classification", "closed", last]
        assert [stage.data for stage in recipe.stages] == [[name] for name in names]
        assert recipe.stages[3].text_cutoff == (108 if last == "mix" else 256)
    for row in tables["table4"]:
        recipe = load_recipe(f"table4_encoder_{row['encoder_from'].lower()}")
        assert (recipe.size, recipe.connector, recipe.lora_rank) == ("130m", "concatenation", 256)
        assert Path(recipe.encoder_from).name == row["encoder_from"]
        donor = load_recipe(f"{row['encoder_from']}")
        assert donor.size == row["size"].lower()
        assert [s.trains for s in recipe.stages] == [["connector"]] + [["connector", "lora"]] * 3


def test_every_recipe_loads_and_can_be_planned_by_name():
    names = recipe_names()
    assert {"ltu", "toy", "sam-tiny", *(f"E{n}" for n in range(1, 19))} <= names.keys()
    assert names.keys() == {path.stem for path in RECIPES.glob("*.yaml")}
    for name, description in names.items():
        assert load_recipe(name).name == name
        assert description[0].isupper() and description[-1] in ".?" and len(description) < 119, name
    assert [name for name in names if name.startswith("E")] == [f"E{n}" for n in range(1, 19)]
    tiny = load_recipe("sam-tiny")
    assert [stage.number for stage in tiny.stages] == [0, 1, 2, 3, 4]
    assert (
        tiny.stages[0].trains == ["language_model"] and tiny.cache_features and tiny.stages[2].augment == "everything"
    )


# -- Parts --------------------------------------------------------------------------------------------------------


def batch(count=2):
    clips = np.random.default_rng(1).uniform(-0.1, 0.1, (count, 8000)).astype(np.float32)
    rows = [
        {"audio": {"array": clip, "sampling_rate": 16000}, "prompt": "Which?", "answer": "This" + "." * index}
        for index, clip in enumerate(clips)
    ]
    return SamDataCollator(tiny_processor())(rows)


def test_what_is_trained_is_float32_and_the_rest_as_stored(world):
    model = with_adapters(load_base(toy(world)), toy(world))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert sum(".lora_" in name for name in trained) == 2 * 2 * 2  # A and B of two projections in two layers
    assert not any(".lora_" in name for name in trained if "audio_tower" in name)
    base = model.get_base_model().model.language_model.layers[0].mixer
    assert base.in_proj.base_layer.weight.dtype == torch.bfloat16
    assert base.out_proj.lora_dropout["default"].p == 0.05
    assert base.out_proj.scaling["default"] == 2.0


@pytest.mark.parametrize("trains", [["connector"], ["connector", "lora"], ["connector", "encoder", "lora"]])
def test_a_stage_trains_its_parts(world, trains):
    model = with_adapters(load_base(toy(world)), toy(world))
    counts = choose_trainable(model, trains)
    config = tiny_config()
    text, audio = config.text_config, tiny_model().model.audio_tower
    inner = text.hidden_size * text.expand
    projected = 2 * inner + 2 * text.n_groups * text.state_size + text.num_heads
    rank, layers = 4, text.num_hidden_layers
    expected = {
        "connector": sum(p.numel() for p in tiny_model().model.connector.parameters()),
        "encoder": sum(p.numel() for p in audio.parameters()),
        "lora": layers * rank * (text.hidden_size + projected + inner + text.hidden_size),
    }
    assert counts == {part: expected[part] for part in trains}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(counts.values())


def test_every_adapter_tensor_gets_a_gradient_and_training_is_evaluation_without_dropout(world):
    recipe = toy(world, "lora_dropout=0", "base_dtype=float32")
    model = with_adapters(load_base(recipe), recipe)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.05)
    inputs = batch()
    output = model.train()(**inputs)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad and "extra_tokens" not in name:
            assert parameter.grad.abs().max() > 0, name
    with torch.no_grad():
        real = inputs["attention_mask"].bool()
        evaluated = model.eval()(**inputs).logits
        torch.testing.assert_close(evaluated[real], output.logits[real], rtol=0, atol=1e-5)
    recipe = toy(world, "lora_dropout=0.5", "base_dtype=float32")
    with_dropout = with_adapters(load_base(recipe), recipe)
    load_state = {name: p.detach() for name, p in model.named_parameters()}
    for name, parameter in with_dropout.named_parameters():
        parameter.data = load_state[name].clone()
    assert (with_dropout.train()(**inputs).logits - output.logits).abs().max() > 1e-2


def test_a_hand_over_is_exact_where_the_checkpoint_is_stored_in_bf16(world, tmp_path):
    recipe = toy(world)
    model = with_adapters(load_base(recipe), recipe)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 1e-6 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    loaded = with_adapters(load_base(recipe), recipe)
    load_weights(loaded, tmp_path)
    assert same(dict(model.named_parameters()), dict(loaded.named_parameters()))
    # The trap: peft's copies of bf16 modules are bf16, and round what is loaded into them.
    rounded = PeftModel.from_pretrained(load_base(recipe), tmp_path, is_trainable=True)
    weight = "base_model.model.model.connector.modules_to_save.default.linear_1.weight"
    assert not torch.equal(dict(rounded.named_parameters())[weight].float(), dict(model.named_parameters())[weight])


def test_weights_of_another_model_are_an_error(world, tmp_path):
    recipe = toy(world)
    with_adapters(load_base(recipe), recipe).save_pretrained(tmp_path)
    for other in (toy(world, "lora_rank=2"), toy(world, *FROZEN)):
        with pytest.raises(ValueError, match="missing, unknown or of another shape, the first is base_model"):
            load_weights(with_adapters(load_base(other), other), tmp_path)


FROZEN = ["joint_encoder=false", *(f"stages.{number}.trains=[connector, lora]" for number in (2, 3, 4))]


def test_adapters_are_merged_saved_and_reloaded(world, tmp_path):
    recipe = toy(world, "lora_dropout=0", "base_dtype=float32")
    model = with_adapters(load_base(recipe), recipe)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    inputs = {name: value for name, value in batch().items() if name != "labels"}
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        assert (load_base(recipe).eval()(**inputs).logits - expected).abs().max() > 1e-2
        merged = merged_model(recipe, tmp_path / "adapter").eval()
        assert (merged(**inputs).logits - expected).abs().max() < 1e-4
        merged.save_pretrained(tmp_path / "merged")
        alone = SamForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
        assert torch.equal(alone(**inputs).logits, merged(**inputs).logits)
        base = SamForConditionalGeneration.from_pretrained(world / "model", dtype=torch.float32)
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()  # the way without our code
        assert torch.equal(adapted(**inputs).logits, expected)


def test_a_plan_counts_what_the_papers_sizes_have():
    recipe = load_recipe("E6", ["model=nowhere/at-all", "data.classification.rows=1280001"])
    stages = plan(recipe, pairs_per_second=80)
    assert [stage["steps"] for stage in stages] == [2 * 5001, 2 * 5001, 7492, 22195]
    assert [list(stage["trained"]) for stage in stages] == [["connector"]] + [["connector", "encoder", "lora"]] * 3
    assert stages[1]["trained"]["lora"] == 341_049_344  # 64 layers of in_proj and out_proj at r = 256
    assert stages[0]["trained"]["connector"] == 6144 * 2560 + 2560 + 2560 * 2560 + 2560
    assert stages[3]["tokens"] == 5_681_708 * (64 + 108)
    assert stages[3]["hours"] == pytest.approx(5_681_708 / 80 / 3600)
    text = plan_text(plan(load_recipe("E10", ["model=nowhere/at-all", "data.classification.rows=null"])))
    assert "unknown" in text and "lora 39.47" in text
    with pytest.raises(ValueError, match="stage: got 77, the recipe E6 has 1, 2, 3, 4"):
        plan(recipe, stage=77)


# -- Running ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def straight(world, tmp_path_factory):
    """A run of all four stages that nothing interrupted."""
    output = tmp_path_factory.mktemp("straight") / "run"
    run_recipe(toy(world, "keep_checkpoints=true", "validation=closed"), output)
    return output


@pytest.mark.slow
def test_four_stages_hand_on_exactly_and_train_their_parts(world, straight):
    steps = [json.loads((straight / f"stage-{n}" / "finished.json").read_text())["steps"] for n in (1, 2, 3, 4)]
    assert steps == [4, 4, 2, 2]
    before = tensors(world / "model")
    for number in (1, 2, 3, 4):
        after = tensors(straight / f"stage-{number}" / "adapter")
        assert {value.dtype for value in after.values()} == {torch.float32}
        kinds = {name: "lora" if "lora_" in name else name.split(".")[3] for name in after}
        assert set(kinds.values()) == {"lora", "connector", "audio_tower"}
        if number == 1:  # the encoder is as it was, and LoRA does nothing
            start = {name: before[name.removeprefix("base_model.model.")] for name in after if "lora_" not in name}
            start.update({name: torch.zeros_like(value) for name, value in after.items() if "lora_B" in name})
            before = {**{name: value for name, value in after.items() if "lora_A" in name}, **start}
        moved = {kinds[name] for name in after if not torch.equal(before[name].float(), after[name])}
        assert moved == ({"connector"} if number == 1 else {"lora", "connector", "audio_tower"})
        before = after
    assert losses(straight / "stage-4")[-1] < losses(straight / "stage-1")[0]
    read = [json.loads((straight / f"stage-{n}" / "finished.json").read_text())["read"] for n in (1, 2, 3, 4)]
    none = {"broken": 0, "truncated": 0, "cut": 0, "unanswered": 0}
    assert read == [{"noise": {"seen": 4 * steps, **none}} for steps in (4, 4, 2, 2)]  # the records' own source


@pytest.mark.slow
def test_what_a_stage_keeps_loads_alone(world, straight):
    recipe = toy(world)
    for number in (1, 4):
        folder = straight / f"stage-{number}"
        merged = merged_model(recipe, folder / "adapter")
        last = SamForConditionalGeneration.from_pretrained(folder / "last", dtype="auto")
        assert same(dict(last.named_parameters()), dict(merged.named_parameters()))
        assert last.model.audio_tower.pre_norm.weight.dtype == torch.bfloat16
        assert last.model.language_model.layers[0].mixer.A_log.dtype == torch.float32
        SamForConditionalGeneration.from_pretrained(folder / "best")
        encoder = SamAudioModel.from_pretrained(folder / "encoder", dtype="auto")
        expected = tensors(folder / "adapter")
        for name, parameter in encoder.named_parameters():
            assert parameter.dtype == torch.bfloat16
            assert torch.equal(parameter, expected[f"base_model.model.model.audio_tower.{name}"].bfloat16())
        samples = json.loads((folder / "samples.json").read_text())
        assert len(samples) == 2 and set(samples[0]) >= {"audio", "prompt", "answer", "prediction"}
        (events,) = {path.parent for path in (folder / "runs").rglob("events.*")}  # tensorboard's curves
        curves = EventAccumulator(str(events)).Reload()
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        for key, tag in (("loss", "train/loss"), ("eval_loss", "eval/loss")):
            logged = {entry["step"]: entry[key] for entry in history if key in entry}
            assert {each.step: each.value for each in curves.Scalars(tag)} == pytest.approx(logged, rel=1e-6)


def test_the_best_is_that_of_the_lowest_evaluation_loss(world, straight):
    folder = straight / "stage-1"
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    by_step = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    assert sorted(by_step) == [2, 4]
    best = min(by_step, key=by_step.get)
    expected = merged_model(toy(world), folder / f"checkpoint-{best}")
    assert same(tensors(folder / "best"), {n: p for n, p in expected.state_dict().items() if n != "lm_head.weight"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "kill", [(1, 3), (2, 3), (2, 1), (3, 2)], ids=["of a part", "between checkpoints", "before any", "at the end"]
)
def test_a_killed_run_goes_on_to_the_same_losses(world, straight, tmp_path, kill):
    recipe, output = toy(world, "keep_checkpoints=true", "validation=closed"), tmp_path / "run"
    output.mkdir()
    for item in ("recipe.yaml", *(f"stage-{number}" for number in range(1, kill[0]))):  # finished: not the point
        copy = shutil.copytree if (straight / item).is_dir() else shutil.copy
        copy(straight / item, output / item)
    folder = output / f"stage-{kill[0]}"
    with pytest.raises(Killed):
        run_recipe(recipe, output, callbacks=[Kill(*kill)])
    assert not (folder / "finished.json").exists()
    shutil.copytree(straight / "stage-1" / "checkpoint-2", folder / "checkpoint-99")  # one that was being written
    (folder / "checkpoint-99" / stages_module.COMPLETE).unlink()
    if (newest := last_checkpoint(folder)) is not None:  # as if it had taken an hour
        state = json.loads((newest / "trainer_state.json").read_text())
        state["stateful_callbacks"][stages_module.SECONDS] += 3600
        (newest / "trainer_state.json").write_text(json.dumps(state))
    run_recipe(recipe, output, stage=kill[0])
    assert not (folder / "checkpoint-99").exists()
    assert losses(folder) == losses(straight / folder.name)
    summary, expected = (json.loads((run / folder.name / "finished.json").read_text()) for run in (output, straight))
    assert summary.pop("seconds") > (0 if newest is None else 3600) and 0 < expected.pop("seconds") < 3600
    assert summary == expected and expected["loss"] == pytest.approx(np.mean(losses(straight / folder.name)))
    assert same(tensors(folder / "adapter"), tensors(straight / folder.name / "adapter"))
    assert same(tensors(folder / "last"), tensors(straight / folder.name / "last"))


@pytest.mark.slow
def test_a_run_killed_between_training_and_keeping_goes_on(world, straight, tmp_path, monkeypatch):
    recipe, output = toy(world, "validation=closed", "keep_checkpoints=true"), tmp_path / "run"
    output.mkdir()
    shutil.copy(straight / "recipe.yaml", output)
    with monkeypatch.context() as patch:
        patch.setattr(stages_module, "generate_answers", lambda *args: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run_recipe(recipe, output, stage=1)
    with monkeypatch.context() as patch:  # nothing is trained again
        patch.setattr(stages_module, "stage_trainer", lambda *args: pytest.fail("trained again"))
        run_recipe(recipe, output, stage=1)
        run_recipe(recipe, output, stage=1)  # and now nothing is done
    assert same(tensors(output / "stage-1" / "last"), tensors(straight / "stage-1" / "last"))


def test_a_run_killed_while_it_tidies_goes_on(world, tmp_path, monkeypatch):
    recipe, rmtree = toy(world, "validation=closed"), shutil.rmtree

    def kill(path, *args, **kwargs):
        if Path(path).name == "checkpoint-4":
            raise Killed
        rmtree(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(stages_module.shutil, "rmtree", kill)
        with pytest.raises(Killed):
            run_recipe(recipe, tmp_path, stage=1)
    assert list((tmp_path / "stage-1").glob("checkpoint-*"))
    run_recipe(recipe, tmp_path, stage=1)
    assert not list((tmp_path / "stage-1").glob("checkpoint-*"))
    SamForConditionalGeneration.from_pretrained(tmp_path / "stage-1" / "best")


@pytest.mark.slow
def test_two_runs_do_not_write_into_one_folder(world, tmp_path, monkeypatch):
    monkeypatch.setattr(curriculum_module, "LOCK_SECONDS", 0.3)
    with locked(tmp_path), pytest.raises(ValueError, match="output: another run is writing into"):
        run_recipe(toy(world), tmp_path, stage=1)
    run_recipe(toy(world), tmp_path, stage=1)
    assert not (tmp_path / ".lock").exists()


def test_a_run_does_not_go_on_with_other_weights_or_rows(world, tmp_path):
    model, rows = tmp_path / "model", tmp_path / "rows.csv"
    shutil.copytree(world / "model", model)
    text = (world / "rows.csv").read_text().replace("\r", "")
    rows.write_text(text.replace("\n", f"\n{world}/").removesuffix(f"{world}/"))
    table = ["data.classification={path: " + str(rows) + ", format: table}", f"model={model}"]
    run_recipe(toy(world, *table), tmp_path / "run", stage=1)
    (tmp_path / "run" / "stage-1" / "finished.json").unlink()
    there = rows.read_text()
    rows.write_text(there.replace("A noise!!", "Another!!"))
    with pytest.raises(ValueError, match=r"was started with other contents of data\.classification;"):
        run_recipe(toy(world, *table), tmp_path / "run", stage=1)
    rows.write_text(there)
    other = tiny_model()
    torch.nn.init.normal_(other.lm_head.weight)
    other.save_pretrained(model)
    with pytest.raises(ValueError, match="was started with other contents of model;"):
        run_recipe(toy(world, *table), tmp_path / "run", stage=1)


def test_another_recipe_in_the_same_folder_is_an_error(world, straight, tmp_path):
    shutil.copy(straight / "recipe.yaml", tmp_path)
    same_recipe = ["keep_checkpoints=true", "validation=closed"]
    claim(toy(world, *same_recipe, "micro_batch_size=4"), tmp_path)
    claim(toy(world, *same_recipe, "data_root=elsewhere", "audio_roots=['/a=/b']", "records=there"), tmp_path)
    with pytest.raises(ValueError, match=r"another recipe \(stages\.2\.learning_rate: 0\.0001 there, 0\.5 now\)"):
        claim(toy(world, *same_recipe, "stages.2.learning_rate=0.5"), tmp_path)
    with pytest.raises(ValueError, match=r"seed: 0 there, 1 now"):
        run_recipe(toy(world, *same_recipe, "seed=1"), tmp_path)


def test_a_stage_needs_the_one_before(world, tmp_path):
    with pytest.raises(ValueError, match="stage: 3 starts from stage 2, which is not finished"):
        run_recipe(toy(world), tmp_path, stage=3)
    with pytest.raises(ValueError, match="stage: got 7, the recipe toy has 1, 2, 3, 4"):
        run_recipe(toy(world), tmp_path, stage=7)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (
            ["global_batch_size=5"],
            ValueError,
            r"stages\.1: global_batch_size 5 is no multiple of micro_batch_size 2 t",
        ),
        (["model=/nowhere"], FileNotFoundError, r"model: there is no SAM checkpoint '/nowhere'.*sam-alm convert"),
        (["connector=time_major"], ValueError, r"has the connector concatenation, the recipe toy expects time_major"),
        (["size=130m"], ValueError, r"has num_hidden_layers 2 in its language model.*size 130m, which has 24"),
        (["encoder_attention=flash_attention_2"], ValueError, r"flash-attn.*--set encoder_attention=sdpa"),
        (["encoder_from=/nowhere"], FileNotFoundError, r"encoder_from: '/nowhere' contains neither"),
        (["data.mix.path=gone"], FileNotFoundError, r"data\.mix\.path: there is no whole folder .*gone"),
        (["data.mix.path=gone.csv", "data.mix.format=table"], FileNotFoundError, r"no file .*gone\.csv"),
        (["data.mix.path=gone.json", "data.mix.format=openaqa"], FileNotFoundError, r"data\.mix\.path: there is no f"),
        (["stages.4.hand_over_step=3"], ValueError, r"stages\.4: its data make 2 steps, hand_over_step is 3"),
        (["stages.2.warmup_steps=9"], ValueError, r"stages\.2: its data make 4 steps.*warmup_steps 9"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is_loaded(world, tmp_path, monkeypatch, overrides, error, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(stages_module, "load_base", lambda *args: pytest.fail("the model was loaded"))
    with pytest.raises(error, match=message):
        run_recipe(toy(world, *overrides), tmp_path / "run")


def clips_table(folder, clips):
    """A table of clips as a data source, an answer for each."""
    (folder / "clips.csv").write_text("audio,answer\n" + "".join(f"{clip},noise\n" for clip in clips))
    return ["data.clips={path: " + str(folder / "clips.csv") + ", format: table}"]


def test_audio_that_is_not_there_is_said_before_anything_is_loaded(world, tmp_path, monkeypatch, capsys):
    real = [world / f"{index}.wav" for index in range(8)]
    recipe = toy(world, *clips_table(tmp_path, [*real, "gone.wav"]), "stages.1.data=[clips]")
    with (
        monkeypatch.context() as patch,
        pytest.raises(ValueError, match=r"data\.clips: .* 1 of 9 rows does not exist .*gone"),
    ):
        patch.setattr(stages_module, "load_base", lambda *args: pytest.fail("the model was loaded"))
        run_recipe(recipe, tmp_path / "run", stage=1)
    recipe = toy(
        world, *clips_table(tmp_path, [*real, "gone.wav"]), "stages.1.data=[clips]", "data.clips.max_missing=0.2"
    )
    run_recipe(recipe, tmp_path / "run", stage=1)
    assert "clips: the audio of 8 of 9 rows is present" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "stage-1" / "finished.json").read_text())["steps"] == 4


@pytest.mark.slow
def test_broken_clips_to_evaluate_on_are_found_before_anything_is_loaded(world, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    clips = [world / "0.wav", world / "1.wav", world / "2.wav", tmp_path / "broken.wav"]
    overrides = [*clips_table(tmp_path, clips), "validation=clips"]
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"validation: 1 of the 4 .*broken\.wav"):
        patch.setattr(stages_module, "load_base", lambda *args: pytest.fail("the model was loaded"))
        run_recipe(toy(world, *overrides), tmp_path / "run")
    run_recipe(toy(world, *overrides, "max_broken=0.25", "generated_rows=9"), tmp_path / "run", stage=1)
    assert "validation: 1 of 4 clips cannot be read and are skipped" in capsys.readouterr().out
    samples = json.loads((tmp_path / "run" / "stage-1" / "samples.json").read_text())
    assert {Path(row["audio"]).name for row in samples} == {"0.wav", "1.wav", "2.wav"}


@pytest.mark.slow
@pytest.mark.parametrize("options", [["num_workers=0"], ["num_workers=2"], ["cache_features=true"]])
def test_broken_clips_are_left_out_and_what_was_read_is_kept(world, tmp_path, options):
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    overrides = [*clips_table(tmp_path, [*(world / f"{index}.wav" for index in range(6)), tmp_path / "broken.wav"])]
    overrides += [f"data.more={{path: {tmp_path / 'clips.csv'}, format: table}}", "stages.1.data=[clips, more]"]
    recipe = toy(world, *overrides, "max_broken=0.15", *options)
    with pytest.raises(Killed):
        run_recipe(recipe, tmp_path / "run", stage=1, callbacks=[Kill(1, 3)])
    run_recipe(recipe, tmp_path / "run", stage=1)
    finished = json.loads((tmp_path / "run" / "stage-1" / "finished.json").read_text())
    epochs = 1 if options == ["cache_features=true"] else 2  # read once, or as often as the stage says
    row = {"seen": 7 * epochs, "broken": epochs, "truncated": 0, "cut": 0, "unanswered": 0}
    assert finished["steps"] == 8 and finished["read"] == {"clips": row, "more": row}
    with pytest.raises(ValueError, match=r"max_broken: the audio of \d of \d+ records .*clips: .*more: .*max_broken"):
        run_recipe(toy(world, *overrides, "max_broken=0", *options), tmp_path / "none", stage=1)


def test_nothing_is_trained_on_weights_that_are_not_there(world, straight, tmp_path):
    weights = load_file(world / "model" / "model.safetensors")
    for name, change in (("missing", lambda value: None), ("another shape", lambda value: value[..., :1].clone())):
        model = tmp_path / name
        shutil.copytree(world / "model", model)
        key = next(key for key in weights if ".audio_tower." in key and key.endswith("proj.weight"))
        changed = {**weights, key: change(weights[key])}
        kept = {key: value for key, value in changed.items() if value is not None}
        save_file(kept, model / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"^model: in .* 1 tensors are missing or of another shape.*audio_tower"):
            run_recipe(toy(world, f"model={model}"), tmp_path / f"run {name}", stage=1)
    (model / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model"):
        run_recipe(toy(world, f"model={model}"), tmp_path / "run", stage=1)
    encoder = tmp_path / "encoder"
    shutil.copytree(straight / "stage-4" / "encoder", encoder)
    tensors_there = load_file(encoder / "model.safetensors")
    tensors_there.popitem()
    save_file(tensors_there, encoder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"^encoder_from: in .* 1 tensors are missing"):
        run_recipe(toy(world, *FROZEN, f"encoder_from={encoder}"), tmp_path / "frozen", stage=1)


class Watch(TrainerCallback):
    """Keeps what the optimiser is given in each step."""

    def __init__(self):
        self.rates, self.arguments = [], None

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.arguments = (args.max_grad_norm, args.seed, {group["weight_decay"] for group in optimizer.param_groups})


@pytest.mark.parametrize(
    ("schedule", "shares"), [("linear", [0, 1 / 2, 1, 2 / 3, 1 / 3]), ("cosine", [0, 1 / 2, 1, 0.75, 0.25])]
)
def test_the_rate_rises_and_falls_as_the_recipe_says(world, tmp_path, schedule, shares):
    watch = Watch()
    settings = ["weight_decay=0.25", "max_grad_norm=0.5", "seed=7", "stages.1.epochs=2.5", f"schedule={schedule}"]
    run_recipe(toy(world, "warmup_steps=2", *settings), tmp_path, stage=1, callbacks=[watch])
    assert watch.rates == pytest.approx([1e-3 * share for share in shares])
    assert watch.arguments[:2] == (0.5, 8) and watch.arguments[2] == {0.25, 0.0}  # biases and norms are not decayed


def test_the_encoder_is_kept_in_bf16_whatever_the_model(world, tmp_path):
    run_recipe(toy(world, "base_dtype=float32"), tmp_path, stage=1)
    assert {value.dtype for value in tensors(tmp_path / "stage-1" / "encoder").values()} == {torch.bfloat16}
    assert torch.float32 in {value.dtype for value in tensors(tmp_path / "stage-1" / "last").values()}


def test_features_in_memory_are_for_one_process(world):
    with pytest.raises(ValueError, match="cache_features: got true with 2 processes, expected one"):
        curriculum_module.check_machine(toy(world, "cache_features=true", "stages.1.epochs=1"), 2)


def test_data_without_rows_and_a_cutoff_without_answers(world, tmp_path, monkeypatch):
    monkeypatch.setattr(stages_module, "load_base", lambda *args: pytest.fail("the model was loaded"))
    (tmp_path / "empty.csv").write_text("audio,prompt,answer\n")
    empty = ["data.mix={path: " + str(tmp_path / "empty.csv") + ", format: table}"]
    with pytest.raises(ValueError, match=r"empty\.csv"):
        run_recipe(toy(world, *empty), tmp_path / "run")
    length = len(PROMPT_TEMPLATE.format(prompt="What?"))  # the tokenizer's tokens are bytes
    with pytest.raises(ValueError, match=f"text_cutoff: {length} leaves nothing"):
        run_recipe(toy(world, f"stages.4.text_cutoff={length}"), tmp_path / "run2")


def test_a_hand_over_within_a_stage(world, tmp_path):
    recipe = toy(world, "stages.1.hand_over_step=3", "keep_checkpoints=true", "save_steps=1")
    run_recipe(recipe, tmp_path, stage=1)
    folder = tmp_path / "stage-1"
    assert (folder / "checkpoint-3").is_dir() and (folder / "checkpoint-4").is_dir()
    assert same(tensors(folder / "adapter"), tensors(folder / "checkpoint-3"))
    assert not same(tensors(folder / "adapter"), tensors(folder / "checkpoint-4"))
    for name, checkpoint in (("handed", "checkpoint-3"), ("last", "checkpoint-4")):
        stored = SamForConditionalGeneration.from_pretrained(folder / name, dtype="auto")
        assert same(
            dict(stored.named_parameters()), dict(merged_model(recipe, folder / checkpoint).named_parameters())
        )
    assert last_checkpoint(folder).name == "checkpoint-4"


@pytest.mark.slow
def test_a_frozen_encoder_of_another_run(world, straight, tmp_path):
    recipe = toy(world, *FROZEN, f"encoder_from={straight}")
    assert encoder_folder(recipe) == straight / "stage-4" / "encoder"
    run_recipe(recipe, tmp_path, stage=1)
    parts = {name.split(".")[3] for name in tensors(tmp_path / "stage-1" / "adapter") if "lora_" not in name}
    assert parts == {"connector", "audio_tower"}
    donor = tensors(straight / "stage-4" / "encoder")
    adapter = tmp_path / "stage-1" / "adapter"  # with the base that it names, it is the model that was trained
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    together = PeftModel.from_pretrained(SamForConditionalGeneration.from_pretrained(base), adapter).eval()
    last = SamForConditionalGeneration.from_pretrained(tmp_path / "stage-1" / "last").eval()
    with torch.no_grad():
        logits, expected = (each(**tiny_inputs()).logits for each in (together, last))
    assert Path(base).is_absolute() and torch.allclose(logits, expected, atol=0.05) and expected.abs().max() > 1
    assert same(tensors(tmp_path / "stage-1" / "encoder"), donor)
    last = tensors(tmp_path / "stage-1" / "last")
    assert all(torch.equal(last[f"model.audio_tower.{name}"], value) for name, value in donor.items())
    unfinished = tmp_path / "unfinished"
    shutil.copytree(straight, unfinished)
    (unfinished / "stage-4" / "finished.json").unlink()
    with pytest.raises(ValueError, match=r"encoder_from: the run in .* has not finished its last stage, stage-4"):
        encoder_folder(toy(world, *FROZEN, f"encoder_from={unfinished}"))
    old = {name: value for name, value in tensors(adapter).items() if ".audio_tower." not in name}
    save_file(old, adapter / "adapter_model.safetensors")  # as it once was saved: the base has the encoder anyway
    run_recipe(recipe, tmp_path, stage=2)
    assert same(tensors(tmp_path / "stage-2" / "encoder"), donor)
    original = tensors(world / "model")
    assert not all(torch.equal(original[f"model.audio_tower.{name}"], value) for name, value in donor.items())


PUSH_ADAPTER = """
import json, sys
root, base, adapter = sys.argv[1:]
sys.path[:0] = [root, root + "/tests"]
import sam_alm, torch
from huggingface_hub import HfApi
from peft import PeftModel
from tiny import tiny_inputs
from transformers import AutoModel

AutoModel.from_pretrained(base).push_to_hub("acme/base")
HfApi().create_repo("acme/adapter")
HfApi().upload_folder(repo_id="acme/adapter", folder_path=adapter)
named = json.load(open(adapter + "/adapter_config.json"))["base_model_name_or_path"]
together = PeftModel.from_pretrained(AutoModel.from_pretrained(named), "acme/adapter").eval()
last = AutoModel.from_pretrained(adapter + "/../last").eval()
with torch.no_grad():
    print("\\n" + json.dumps([named, (together(**tiny_inputs()).logits - last(**tiny_inputs()).logits).abs().max().item()]))
"""


@pytest.mark.slow
def test_the_loss_of_a_stage_is_that_of_all_its_steps(world, tmp_path):
    for steps in (3, 20):
        options = [f"logging_steps={steps}", f"save_steps={steps}"]
        run_recipe(toy(world, *options), tmp_path / str(steps), stage=1)
    run_recipe(toy(world, "logging_steps=1", "save_steps=2"), tmp_path / "1", stage=1)
    found = [
        json.loads((tmp_path / each / "stage-1" / "finished.json").read_text())["loss"] for each in ("1", "3", "20")
    ]
    assert found == pytest.approx([np.mean(losses(tmp_path / "1" / "stage-1"))] * 3, rel=1e-4)


@pytest.mark.slow
def test_an_adapter_is_pushed_as_it_lies(world, tmp_path):
    run_recipe(toy(world, "base_id=acme/base"), tmp_path, stage=1)
    adapter = tmp_path / "stage-1" / "adapter"
    card = ModelCard.load(adapter / "README.md")
    assert card.data.base_model == "acme/base" and 'from_pretrained("acme/base", dtype="auto")' in card.text
    assert "\n# toy\n" in (adapter.parent / "last" / "README.md").read_text()
    assert "the connector and the encoder" in card.text and not (adapter / "training_args.bin").exists()
    with LoopbackHub() as hub:
        done = subprocess.run(
            [sys.executable, "-c", PUSH_ADAPTER, ROOT, world / "model", adapter],
            env=hub.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    named, difference = json.loads(done.stdout.splitlines()[-1])
    assert named == "acme/base" and difference < 0.05


def test_published_files_are_converted_with_their_audio_found(world, tmp_path, capsys):
    published = [
        {
            "instruction": "Classify.",
            "input": "",
            "audio_id": f"/authors/{index}.wav",
            "dataset": "as_20k",
            "task": "cla_label",
            "output": "Noise",
        }
        for index in range(8)
    ]
    (tmp_path / "cla.json").write_text(json.dumps(published))
    source = f"data.classification={{path: {tmp_path / 'cla.json'}, format: openaqa}}"
    recipe = toy(world, source, f"audio_roots=['/authors={world}']")
    names = ["classification"]
    sources = sources_module.prepare_data(recipe, tmp_path / "run", names)
    rows = list(records_dataset(sources["classification"]))
    assert sorted(row["audio"] for row in rows) == [str(world / f"{index}.wav") for index in range(8)]
    assert "as_20k" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--audio-root"):
        sources_module.prepare_data(toy(world, source), tmp_path / "other", names)


@pytest.mark.slow
def test_a_whole_model_by_the_clock_with_features_on_the_device(world, tmp_path):
    (tmp_path / "whole.yaml").write_text(
        yaml.safe_dump(
            {
                "model": str(world / "model"),
                "data_root": str(world),
                "precision": "fp32",
                "text_cutoff": None,
                "global_batch_size": 4,
                "micro_batch_size": 4,
                "warmup_steps": 0,
                "cache_features": True,
                "augment": "everything",
                "logging_steps": 1,
                "save_steps": 1,
                "data": {n: {"path": f"{n}.csv", "format": "table"} for n in ("rows", "text")},
                "stages": {
                    0: {
                        "name": "text",
                        "trains": ["language_model"],
                        "learning_rate": 1e-3,
                        "epochs": 1,
                        "data": ["text"],
                    },
                    1: {
                        "name": "all",
                        "trains": ["connector", "encoder", "language_model"],
                        "learning_rate": 1e-3,
                        "max_seconds": 0.5,
                        "data": ["rows", "rows"],
                    },
                },
            }
        )
    )
    recipe, output = load_recipe(tmp_path / "whole.yaml"), tmp_path / "run"
    run_recipe(recipe, output)
    before, first, second = (
        tensors(folder) for folder in (world / "model", output / "stage-0/weights", output / "stage-1/weights")
    )
    for name, value in first.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name].float()) == ("language_model" not in name), name
    assert not any(torch.equal(first[name], second[name]) for name in first)
    steps = json.loads((output / "stage-1" / "finished.json").read_text())["steps"]
    assert steps == len(losses(output / "stage-1")) >= 1
    assert tensors(output / "stage-1" / "last")["model.connector.linear_1.weight"].dtype == torch.bfloat16


@pytest.mark.slow
def test_packing_features_on_the_device_recomputing_and_bf16(world, tmp_path):
    """The ways to compute a stage give nearly the same losses."""
    found = {}
    for name, options in {
        "plain": [],
        "other": ["pack_to=200", "features=device", "recompute=true", "num_workers=1"],
        "bf16": ["precision=bf16"],
    }.items():
        settings = ["stages.2.epochs=1", "stages.2.init=model", "lora_dropout=0", "stages.2.warmup_steps=0", *options]
        run_recipe(toy(world, *settings), tmp_path / name, stage=2)
        found[name] = losses(tmp_path / name / "stage-2")
    assert len(found["plain"]) == 2
    assert found["other"] == pytest.approx(found["plain"], rel=1e-4)
    assert found["bf16"] == pytest.approx(found["plain"], rel=0.05) and found["bf16"] != found["plain"]


def test_the_clock_goes_on_after_resuming():
    clock = SecondsCallback(100.0)
    clock.spent = 30.0
    kept = clock.state()
    assert kept["attributes"]["spent"] == pytest.approx(30.0)
    resumed = SecondsCallback(100.0)
    state = SimpleNamespace(global_step=5, stateful_callbacks={"SecondsCallback": kept})
    resumed.on_train_begin(None, state, None)
    assert resumed.share == pytest.approx(0.3)
    control = SimpleNamespace(should_training_stop=False)
    resumed.on_step_end(None, state, control)
    assert not control.should_training_stop
    resumed.begin -= 71
    resumed.on_step_end(None, state, control)
    assert control.should_training_stop


@pytest.mark.slow
def test_two_processes_equal_one(world, tmp_path):
    """`sam-alm train` under torchrun: the same global batches, so the same losses."""
    recipe = ["train", "toy", "--stage", "1"]
    settings = [f"model={world / 'model'}", f"data_root={world}", "validation=null", "generated_rows=0"]
    settings += [f"data.{name}={{path: records, format: records}}" for name in ("classification", "closed", "mix")]
    arguments = [*recipe, *(word for setting in settings for word in ("--set", setting))]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *two, "-m", "sam_alm", *arguments, "--output", tmp_path / "two"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("trains connector") == 1
    run_recipe(load_recipe("toy", settings), tmp_path / "one", stage=1)
    one, two = (losses(tmp_path / name / "stage-1") for name in ("one", "two"))
    assert len(one) == 4 and two == pytest.approx(one, rel=1e-4)


def test_the_command_reports_what_is_wrong_and_what_it_would_do(command, world, capsys, tmp_path):
    settings = ("--set", f"model={world / 'model'}", "--set", f"data_root={ROOT / 'examples'}")
    command("train", "toy", "--dry-run", *settings, "--pairs-per-second", "8")
    printed = capsys.readouterr().out
    assert "connector on classification; rows counted" in printed and "of 0.0" in printed
    message = r"^sam-alm: --set stages\.9x=1: stages: got the key '9x', expected an integer"
    command("train", "toy", "--dry-run", "--set", "stages.9x=1", error=message)
    message = "^sam-alm: model: there is no SAM checkpoint '/nowhere'"
    command("train", RECIPES / "toy.yaml", "--output", tmp_path / "run", "--set", "model=/nowhere", error=message)
    assert not (tmp_path / "run").exists()


class Rates(TrainerCallback):
    """Keeps the learning rate that each parameter begins with."""

    def __init__(self):
        self.rates = {}

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self.rates.setdefault(names[id(parameter)], group["initial_lr"])


@pytest.mark.slow
def test_the_encoder_may_have_a_rate_of_its_own(world, tmp_path):
    recipe = toy(world, "stages.2.encoder_learning_rate=3e-6")
    output, watch = tmp_path / "run", Rates()
    run_recipe(recipe, output, stage=1)
    run_recipe(recipe, output, stage=2, callbacks=[watch])
    encoder = {rate for name, rate in watch.rates.items() if ".audio_tower." in name}
    others = {rate for name, rate in watch.rates.items() if ".audio_tower." not in name}
    assert encoder == {3e-6} and others == {1e-4}
    with pytest.raises(ValueError, match=r"stages\.1\.encoder_learning_rate: got it in a stage that does not train"):
        toy(world, "stages.1.encoder_learning_rate=3e-6")
