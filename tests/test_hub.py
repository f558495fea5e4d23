"""Auto classes and the Hub: what goes up is whole, and a process that has never seen the package can use it.

Everything runs in processes of its own: the client reads its environment when it is imported, and a process that
imported the package would use its classes instead of those in the repository.
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from loopback_hub import LoopbackHub

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("configuration_sam", "audio_sam", "processing_sam")
MODULES += ("modeling_sam", "generation_sam", "kernels_sam", "mamba_sam")
CODE = {f"{name}.py" for name in MODULES}
PROCESSOR = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
MODEL = {"config.json", "generation_config.json", "model.safetensors"}

WITH_PACKAGE = f"""
import json, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import sam_alm
from tiny import tiny_model, tiny_processor
"""
# `make test` has installed the package: here it cannot be imported.
WITHOUT_PACKAGE = f"""
import json, sys
sys.modules.update(dict.fromkeys(("sam_alm", "training_sam", "conversion_sam", "cli_sam") + {MODULES!r}))
"""
# Waits for no kernel and no file: a chirp, the prompt, eight greedy tokens.
ANSWER = """
import numpy, torch
def answer(model, processor):
    time = numpy.arange(16000) / 16000
    inputs = processor(
        text="What is it?",
        audio=0.3 * numpy.sin(2000 * time + 3000 * time**2),
        sampling_rate=16000,
        return_tensors="pt",
    )
    return model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :].tolist()
def result(value):
    print("\\n" + json.dumps(value))
"""


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def run(hub, tmp_path_factory):
    """Runs code in a new process with an empty cache and an empty working directory; what it prints last, as JSON."""

    def run(code, package=False):
        folder = tmp_path_factory.mktemp("process")
        (folder / "empty").mkdir()
        done = subprocess.run(
            [
                sys.executable,
                "-P",
                "-c",
                (WITH_PACKAGE if package else WITHOUT_PACKAGE) + ANSWER + textwrap.dedent(code),
            ],
            env=hub.environment(folder / "home") | {"OMP_NUM_THREADS": "1"},
            cwd=folder / "empty",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def pushed(run, tmp_path_factory):
    """The tiny model and its processor, pushed to acme/sam and saved to a directory; its answer, and the directory."""
    folder = tmp_path_factory.mktemp("saved") / "sam"
    code = f"""
        model, processor = tiny_model("time_major"), tiny_processor("time_major")
        for part in (model, processor):
            part.push_to_hub("acme/sam")
            part.save_pretrained({str(folder)!r})
        result(answer(model, processor))
    """
    return {"answer": run(code, package=True), "folder": folder}


def card(files):
    """The metadata and the text of a model card."""
    _, metadata, text = files["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(metadata), text


def check_card(files, name):
    metadata, text = card(files)
    assert metadata["pipeline_tag"] == "audio-text-to-text"
    assert metadata["library_name"] == "transformers"
    assert f"# {name}\n" in text
    assert "generated" not in text and "More information needed" not in text


def test_the_repository_is_whole(hub, pushed):
    files = hub.files("acme/sam")
    assert CODE | PROCESSOR | MODEL <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    for name in CODE:
        assert files[name] == (ROOT / name).read_bytes()
    assert len(json.loads(files["config.json"])["auto_map"]) == 6
    greedy = json.loads(files["generation_config.json"])
    assert greedy["eos_token_id"] == 0 and not greedy.get("do_sample")
    check_card(files, "acme/sam")
    assert {path.name for path in pushed["folder"].iterdir() if path.is_file()} >= CODE | PROCESSOR | MODEL


LOAD = """
    import transformers
    source, errors, answers = {source!r}, [], []
    for auto in ("AutoConfig", "AutoModel", "AutoFeatureExtractor", "AutoProcessor"):
        try:
            getattr(transformers, auto).from_pretrained(source)
        except ValueError as error:
            errors.append("trust_remote_code=True" in str(error))

    def load(auto, **options):
        return getattr(transformers, auto).from_pretrained(source, trust_remote_code=True, **options)

    processor = load("AutoProcessor")
    for auto in ("AutoModel", "AutoModelForCausalLM", "AutoModelForMultimodalLM"):
        model, info = load(auto, output_loading_info=True)
        assert not any(info.values()), info
        answers.append(answer(model, processor))
    names = [type(part).__name__ for part in (load("AutoConfig"), load("AutoFeatureExtractor"), processor, model)]
    result([errors, names, type(model).__module__.split(".")[0], answers])
"""
NAMES = ["SamConfig", "SamFeatureExtractor", "SamAudioLanguageProcessor", "SamForConditionalGeneration"]


def loaded(answer):
    """What `LOAD` gives: without trust four errors that say what to do, with it our classes, from the repository."""
    return [[True] * 4, NAMES, "transformers_modules", [answer] * 3]


def test_every_auto_class_from_the_hub_without_the_package(run, pushed, tmp_path):
    """And what such a process saves, another loads again."""
    again = tmp_path / "again"
    save = f"""
    for part in (model, processor):
        part.save_pretrained({str(again)!r})
    """
    assert run(LOAD.format(source="acme/sam").replace("    result(", save + "result(")) == loaded(pushed["answer"])
    assert {path.name for path in again.iterdir()} >= CODE | PROCESSOR | MODEL
    for name in CODE:
        assert (again / name).read_bytes() == (ROOT / name).read_bytes()
    assert run(LOAD.format(source=str(again))) == loaded(pushed["answer"])


def test_every_auto_class_from_a_directory_without_the_package(run, pushed):
    assert run(LOAD.format(source=str(pushed["folder"]))) == loaded(pushed["answer"])


def test_with_the_package_no_code_is_downloaded(hub, run, pushed):
    start = len(hub.requests)
    code = """
        from transformers import AutoModelForMultimodalLM, AutoProcessor
        model = AutoModelForMultimodalLM.from_pretrained("acme/sam")
        processor = AutoProcessor.from_pretrained("acme/sam")
        result([type(model).__module__, answer(model, processor)])
    """
    assert run(code, package=True) == ["modeling_sam", pushed["answer"]]
    assert not [line for line in hub.requests[start:] if line.endswith(".py")]


def test_a_later_push_leaves_the_repositorys_own_card_and_replaces_a_draft(hub, run):
    """The processor first, as transformers drafts a card then; a card that the owner wrote stays."""
    code = """
        from huggingface_hub import HfApi
        model, processor = tiny_model(), tiny_processor()
        processor.push_to_hub("acme/order")
        model.push_to_hub("acme/order", commit_message="The model")
        HfApi().create_repo("acme/own")
        own = b"---\\nlicense: mit\\n---\\n# Mine\\n"
        HfApi().upload_file(repo_id="acme/own", path_in_repo="README.md", path_or_fileobj=own)
        for part in (model, processor):
            part.push_to_hub("acme/own")
        model.push_to_hub("acme/own", revision="side")
        result(True)
    """
    assert run(code, package=True)
    assert CODE | PROCESSOR | MODEL <= set(hub.files("acme/order"))
    check_card(hub.files("acme/order"), "acme/order")
    assert hub.commits("acme/order")[-1].title == "The model"
    for revision in ("main", "side"):
        metadata, text = card(hub.files("acme/own", revision))
        assert metadata["license"] == "mit" and text.strip() == "# Mine"


# ---------------------------------------------------------------------------------------------------------------
# Trainer(push_to_hub=True)
# ---------------------------------------------------------------------------------------------------------------

# Two steps on one clip, pushed after each, with transformers' own Trainer.
TRAIN = """
    import numpy
    from transformers import Trainer, TrainingArguments
    from processing_sam import SamDataCollator

    def train(model, processor, repository, folder):
        clip = {{"array": numpy.sin(numpy.arange(8000) / 5.0), "sampling_rate": 16000}}
        rows = [{{"audio": clip, "prompt": "What is it?", "answer": "a tone"}}] * 2
        arguments = TrainingArguments(
            folder,
            max_steps=2,
            per_device_train_batch_size=1,
            save_steps=1,
            learning_rate=1e-2,
            remove_unused_columns=False,
            report_to="none",
            use_cpu=True,
            push_to_hub=True,
            hub_model_id=repository,
            hub_strategy="every_save",
            hub_always_push=True,
        )
        collator = SamDataCollator(processor)
        trainer = Trainer(model, arguments, collator, rows, processing_class=processor)
        trainer.train()
        trainer.push_to_hub()
        return trainer
"""


@pytest.fixture(scope="module")
def trained(run, pushed, tmp_path_factory):
    """acme/trained: all weights, by Trainer. acme/adapter: LoRA and connector on acme/sam, by Trainer."""
    folder = tmp_path_factory.mktemp("trained")
    code = (
        TRAIN.format()
        + f"""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoProcessor
    from training_sam import lora_config
    processor = AutoProcessor.from_pretrained("acme/sam")
    results = {{}}
    model = AutoModelForCausalLM.from_pretrained("acme/sam")
    train(model, processor, "acme/trained", {str(folder / "whole")!r})
    results["trained"] = answer(model.eval(), processor)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained("acme/sam"), lora_config(4, ["connector"]))
    train(model, processor, "acme/adapter", {str(folder / "adapter")!r})
    results["adapter"] = answer(model.eval(), processor)
    model.push_to_hub("acme/adapter2")
    result(results)
    """
    )
    return run(code, package=True)


def test_trainer_leaves_a_whole_repository(hub, run, pushed, trained):
    files = hub.files("acme/trained")
    assert CODE | PROCESSOR | MODEL <= set(files)
    assert trained["trained"] != pushed["answer"]
    assert run(LOAD.format(source="acme/trained")) == loaded(trained["trained"])


def test_trainers_draft_does_not_overwrite_our_card(hub, trained):
    check_card(hub.files("acme/trained"), "acme/trained")


def test_pushes_in_the_middle_of_training_carry_code_and_processor(hub, trained):
    commits = {commit.title: commit for commit in hub.commits("acme/trained")}
    first = commits["Training in progress, step 1"]
    assert CODE | PROCESSOR | MODEL <= set(first.files)
    first = next(commit for commit in hub.commits("acme/adapter") if "step 1" in commit.title)
    assert PROCESSOR | {"adapter_config.json", "adapter_model.safetensors"} <= set(first.files)


def test_an_adapter_names_its_base_by_hub_id(hub, run, trained):
    """By Trainer's push and by the adapter's own; so that the adapter alone leads to the whole model."""
    repositories = ("acme/adapter", "acme/adapter2")
    for repository in repositories:
        named = json.loads(hub.files(repository)["adapter_config.json"])
        assert named["base_model_name_or_path"] == "acme/sam"
    assert card(hub.files("acme/adapter"))[0]["base_model"] == "acme/sam"
    code = f"""
        from transformers import AutoModelForCausalLM, AutoProcessor
        processor = AutoProcessor.from_pretrained("acme/adapter", trust_remote_code=True)
        answers = []
        for repository in {repositories!r}:
            model = AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True)
            answers.append(answer(model, processor))
        result(answers)
    """
    assert run(code) == [trained["adapter"]] * 2
