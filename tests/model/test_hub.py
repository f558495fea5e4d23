"""Auto classes and the Hub: uploads are complete, and a process without the package can use them.

The client reads its environment when it is imported, and a process that imported the package would use its classes
instead of those in the repository: so one new process does all that needs the package, and one without it loads what
came of that, each repository in a fork of its own.
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from loopback_hub import LoopbackHub

from hub_sam import CHECKPOINT_MODULES

pytestmark = pytest.mark.slow  # what they share is pushed by processes of its own

ROOT = Path(__file__).resolve().parents[2]
CODE = {f"{name}.py" for name in CHECKPOINT_MODULES}
PROCESSOR = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
MODEL = {"config.json", "generation_config.json", "model.safetensors"}

# Waits for no kernel and no file: a chirp, the prompt, eight greedy tokens.
ANSWER = """
import json, sys
import numpy, torch, transformers
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor

def answer(model, processor):
    time = numpy.arange(16000) / 16000
    inputs = processor(
        text="What is it?",
        audio=0.3 * numpy.sin(2000 * time + 3000 * time**2),
        sampling_rate=16000,
        return_tensors="pt",
    )
    return model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :].tolist()
"""


def run(hub, folder, code):
    """Runs code in a new process with empty cache and working directory; returns the JSON that it prints last."""
    (folder / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-c", ANSWER + textwrap.dedent(code)],
        env=hub.environment(folder / "home") | {"OMP_NUM_THREADS": "1"},
        cwd=folder / "empty",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        yield hub


# -- With the package: pushes, a load, transformers' own Trainer --------------------------------------------------

# acme/sam: the tiny model and its processor, which are also saved to a directory. acme/flag: the processor alone, by
# save_pretrained(push_to_hub=True).
# acme/order: the tokenizer first, for which transformers drafts a card. acme/own: has a card that its owner wrote.
# acme/trained: all weights, by Trainer(push_to_hub=True), two steps on one clip, pushed after each. acme/ours: the
# same by SamTrainer. acme/adapter: LoRA and connector on acme/sam, by Trainer. acme/adapter2: the same, by its push.
PUSH = """
sys.path[:0] = [{root!r}, {tests!r}]
import sam_alm
from huggingface_hub import HfApi
from peft import get_peft_model
from processing_sam import SamDataCollator
from tiny import tiny_model, tiny_processor
from sam_lab.training.model import lora_config
from sam_lab.training.trainer import SamTrainer
from transformers import Trainer, TrainingArguments

results = {{}}
model, processor = tiny_model("time_major"), tiny_processor("time_major")
for part in (model, processor):
    part.push_to_hub("acme/sam")
    part.save_pretrained({folder!r} + "/sam")
results["sam"] = answer(model, processor)
processor.save_pretrained({folder!r} + "/flag", push_to_hub=True, repo_id="acme/flag")

model, processor = tiny_model(), tiny_processor()
processor.tokenizer.push_to_hub("acme/order")
processor.push_to_hub("acme/order")
model.push_to_hub("acme/order", commit_message="The model")
HfApi().create_repo("acme/own")
own = b"---\\nlicense: mit\\n---\\n# Mine\\n"
HfApi().upload_file(repo_id="acme/own", path_in_repo="README.md", path_or_fileobj=own)
for part in (model, processor):
    part.push_to_hub("acme/own")
model.push_to_hub("acme/own", revision="side")

model = AutoModelForMultimodalLM.from_pretrained("acme/sam")
processor = AutoProcessor.from_pretrained("acme/sam")
results["loaded"] = [type(model).__module__, answer(model, processor)]

def train(model, repository, trainer_class=Trainer):
    clip = {{"array": numpy.sin(numpy.arange(8000) / 5.0), "sampling_rate": 16000}}
    rows = [{{"audio": clip, "prompt": "What is it?", "answer": "a tone"}}] * 2
    arguments = TrainingArguments(
        {folder!r} + "/" + repository.replace("/", "-"),
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
    trainer = trainer_class(model, arguments, SamDataCollator(processor), rows, processing_class=processor)
    trainer.train()
    trainer.push_to_hub()
    return answer(model.eval(), processor)

results["trained"] = train(AutoModelForCausalLM.from_pretrained("acme/sam"), "acme/trained")
results["ours"] = train(AutoModelForCausalLM.from_pretrained("acme/sam"), "acme/ours", SamTrainer)
model = get_peft_model(AutoModelForCausalLM.from_pretrained("acme/sam"), lora_config(4, ["connector"]))
results["adapter"] = train(model, "acme/adapter")
model.push_to_hub("acme/adapter2")
print("\\n" + json.dumps(results))
"""


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    """What `PUSH` found, the folder with the directory `sam`, and the requests."""
    folder = tmp_path_factory.mktemp("pushed")
    code = PUSH.format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(folder))
    return run(hub, folder, code) | {"folder": folder, "requests": list(hub.requests)}


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


@pytest.mark.slow
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
    assert set(hub.files("acme/flag")) >= CODE | PROCESSOR
    assert {path.name for path in (pushed["folder"] / "sam").iterdir() if path.is_file()} >= CODE | PROCESSOR | MODEL


def test_with_the_package_no_code_is_downloaded(pushed):
    assert pushed["loaded"] == ["modeling_sam", pushed["sam"]]
    assert not [line for line in pushed["requests"] if line.endswith(".py")]


def test_a_later_push_leaves_the_repositorys_own_card_and_replaces_a_draft(hub, pushed):
    drafted, processor, _ = (commit.files for commit in hub.commits("acme/order")[1:])
    assert "generated" in drafted["README.md"].decode() and processor["README.md"] == drafted["README.md"]
    assert CODE | PROCESSOR | MODEL <= set(hub.files("acme/order"))
    check_card(hub.files("acme/order"), "acme/order")
    assert hub.commits("acme/order")[-1].title == "The model"
    for revision in ("main", "side"):
        metadata, text = card(hub.files("acme/own", revision))
        assert metadata["license"] == "mit" and text.strip() == "# Mine"


def test_our_trainer_keeps_our_card_and_trainer_writes_its_draft(hub, pushed):
    check_card(hub.files("acme/ours"), "acme/ours")
    assert "generated" in hub.files("acme/trained")["README.md"].decode()


def test_pushes_in_the_middle_of_training_carry_code_and_processor(hub, pushed):
    for repository in ("acme/trained", "acme/ours"):
        commits = {commit.title: commit for commit in hub.commits(repository)}
        assert CODE | PROCESSOR | MODEL <= set(commits["Training in progress, step 1"].files)
    first = next(commit for commit in hub.commits("acme/adapter") if "step 1" in commit.title)
    assert PROCESSOR | {"adapter_config.json", "adapter_model.safetensors"} <= set(first.files)


# -- Without the package ------------------------------------------------------------------------------------------

# `make test` has installed the package: here it cannot be imported.
LOAD = """
from multiprocessing import get_context
from packaging.version import Version
from peft import PeftConfig, PeftModel
sys.modules.update(dict.fromkeys(("sam_alm", "sam_lab") + {modules!r}))

def load(auto, source, **options):
    return getattr(transformers, auto).from_pretrained(source, trust_remote_code=True, **options)

def check(source):
    if "adapter" in source:
        base = load("AutoModelForCausalLM", PeftConfig.from_pretrained(source).base_model_name_or_path)
        models = [PeftModel.from_pretrained(base, source)]
        if Version(transformers.__version__) >= Version("5.18"):  # before, it left out what LoRA trains whole
            models.append(load("AutoModelForCausalLM", source))
        return [answer(model, load("AutoProcessor", "acme/adapter")) for model in models]
    errors, answers = [], []
    for auto in ("AutoConfig", "AutoModel", "AutoFeatureExtractor", "AutoProcessor"):
        try:
            getattr(transformers, auto).from_pretrained(source)
        except ValueError as error:
            errors.append("trust_remote_code=True" in str(error))
    processor = load("AutoProcessor", source)
    for auto in ("AutoModel", "AutoModelForCausalLM", "AutoModelForMultimodalLM"):
        model, info = load(auto, source, output_loading_info=True)
        assert not any(info.values()), info
        answers.append(answer(model, processor))
    parts = [load("AutoConfig", source), load("AutoFeatureExtractor", source), processor, model]
    if source == "acme/sam":
        for part in (model, processor):
            part.save_pretrained({folder!r} + "/again")
    if source.endswith("again"):
        processor.save_pretrained({folder!r} + "/processor")
    return [errors, [type(part).__name__ for part in parts], type(model).__module__.split(".")[0], answers]

# A fork knows what is imported so far, and nothing of the repositories that others have loaded.
with get_context("fork").Pool(1, maxtasksperchild=1) as pool:
    print("\\n" + json.dumps(dict(zip({sources!r}, pool.map(check, {sources!r}, chunksize=1)))))
"""
NAMES = ["SamConfig", "SamFeatureExtractor", "SamAudioLanguageProcessor", "SamForConditionalGeneration"]


@pytest.fixture(scope="module")
def loaded(hub, pushed, tmp_path_factory):
    """What `check` found for each source, and the folder in which `again` and `processor` were saved."""
    folder = tmp_path_factory.mktemp("loaded")
    sources = ["acme/adapter", "acme/adapter2", "acme/sam", "acme/trained", "acme/ours"]
    sources += [str(pushed["folder"] / "sam"), str(folder / "again")]
    return run(hub, folder, LOAD.format(modules=CHECKPOINT_MODULES, folder=str(folder), sources=sources)) | {
        "folder": folder
    }


def complete(answer):
    """What `check` finds: without trust four errors that say what to do, with it our classes, from the repository."""
    return [[True] * 4, NAMES, "transformers_modules", [answer] * 3]


@pytest.mark.slow
def test_every_auto_class_from_the_hub_without_the_package(pushed, loaded):
    """And another process loads what this one saves; a processor from a whole directory saves all the code."""
    assert loaded["acme/sam"] == complete(pushed["sam"])
    assert {path.name for path in (loaded["folder"] / "again").iterdir()} >= CODE | PROCESSOR | MODEL
    assert {path.name for path in (loaded["folder"] / "processor").iterdir()} >= CODE | PROCESSOR
    for name in CODE:
        for folder in ("again", "processor"):
            assert (loaded["folder"] / folder / name).read_bytes() == (ROOT / name).read_bytes()
    assert loaded[str(loaded["folder"] / "again")] == complete(pushed["sam"])


def test_every_auto_class_from_a_directory_without_the_package(pushed, loaded):
    assert loaded[str(pushed["folder"] / "sam")] == complete(pushed["sam"])


def test_trainer_leaves_a_whole_repository(hub, pushed, loaded):
    for name in ("trained", "ours"):
        assert CODE | PROCESSOR | MODEL <= set(hub.files(f"acme/{name}"))
        assert pushed[name] != pushed["sam"]
        assert loaded[f"acme/{name}"] == complete(pushed[name])


def test_an_adapter_names_its_base_by_hub_id(hub, pushed, loaded):
    """By Trainer's push and by the adapter's own; so that the adapter alone leads to the whole model."""
    assert card(hub.files("acme/adapter"))[0]["base_model"] == "acme/sam"
    for repository in ("adapter", "adapter2"):
        named = json.loads(hub.files(f"acme/{repository}")["adapter_config.json"])
        assert named["base_model_name_or_path"] == "acme/sam"
        found = loaded[f"acme/{repository}"]
        assert found == [pushed["adapter"]] * len(found) and found
