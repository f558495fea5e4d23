"""Names: the Auto classes find SAM, Segment Anything keeps its own, and a saved directory needs no package."""

import ast
import base64
import importlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import peft
import pytest
import soundfile
import torch
import transformers
from tiny import tiny_config, tiny_model, tiny_processor, tone
from transformers.dynamic_module_utils import get_relative_imports
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name
from transformers.models.sam.configuration_sam import SamConfig as SegmentAnythingConfig

import modeling_sam
import processing_sam
from configuration_sam import AUTO_MAP, SamAudioConfig, SamConfig
from hub_sam import CHECKPOINT_MODULES, copy_checkpoint_modules
from modeling_sam import SamAudioModel, SamForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
MODEL_AUTO_CLASSES = ["AutoModel", "AutoModelForCausalLM", "AutoModelForMultimodalLM"]
LORA_TARGETS = r".*language_model\.layers\.\d+\.mixer\.(in_proj|out_proj)"
PROMPT = "What do you hear?"


@pytest.fixture(scope="module")
def wave():
    return np.random.default_rng(0).normal(0, 0.1, 24000).astype(np.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, wave):
    """A folder with a whole checkpoint, an adapter, an encoder and a clip, and their results in this process."""
    folder = tmp_path_factory.mktemp("saved")
    model, processor = tiny_model("frequency_major"), tiny_processor("frequency_major")
    model.save_pretrained(folder / "sam")
    processor.save_pretrained(folder / "sam")
    soundfile.write(folder / "clip.wav", wave, 16000, subtype="FLOAT")
    inputs = processor(text=PROMPT, audio=str(folder / "clip.wav"), return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=8)[0].tolist()

    model.model.audio_tower.save_pretrained(folder / "encoder")
    with torch.no_grad():
        heard = model.model.audio_tower(torch.ones(1, 1024, 128)).last_hidden_state.flatten()[:4].tolist()
    adapted = peft.get_peft_model(tiny_model("frequency_major"), peft.LoraConfig(target_modules=LORA_TARGETS))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    adapted.save_pretrained(folder / "adapter")
    adapted_tokens = adapted.eval().generate(**inputs, max_new_tokens=8)[0].tolist()
    assert adapted_tokens != tokens
    return {"folder": folder, "tokens": tokens, "adapted": adapted_tokens, "heard": heard}


def process(code, folder, path=()):
    """Runs code in a process in an empty directory that finds only `path`, whatever is installed."""
    folder.mkdir(parents=True)
    dropped = ("PYTHON", "HF_", "TRANSFORMERS_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    environment |= {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    prelude = f"import json, sys\nsys.path[:0] = {[str(item) for item in path]!r}\n"
    if not path:  # a module that is None there cannot be imported
        prelude += f"sys.modules.update(dict.fromkeys({[*CHECKPOINT_MODULES, 'sam_alm', 'sam_lab']!r}))\n"
    return subprocess.run(
        [sys.executable, "-P", "-c", prelude + textwrap.dedent(code)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )


def fresh(code, folder, path=()):
    """Runs code in a [`process`] and returns the JSON that it prints after `result:`."""
    done = process(code, folder, path)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.split("result: ")[1])


# -- Our own names ------------------------------------------------------------------------------------------------


def test_every_auto_class_resolves_to_ours(saved):
    directory = saved["folder"] / "sam"
    expected = {"AutoConfig": SamConfig, "AutoFeatureExtractor": processing_sam.SamFeatureExtractor}
    expected |= {"AutoProcessor": processing_sam.SamAudioLanguageProcessor}
    expected |= dict.fromkeys(MODEL_AUTO_CLASSES, SamForConditionalGeneration)
    assert expected.keys() == AUTO_MAP.keys()
    for name, expected_class in expected.items():
        assert type(getattr(transformers, name).from_pretrained(directory)) is expected_class, name
        # no effect if the package is imported: no copy of the code runs
        trusted = getattr(transformers, name).from_pretrained(directory, trust_remote_code=True)
        assert type(trusted) is expected_class, name


@pytest.mark.parametrize("name", MODEL_AUTO_CLASSES)
def test_every_model_class_builds_from_a_configuration(name):
    assert type(getattr(transformers, name).from_config(tiny_config())) is SamForConditionalGeneration


def test_encoder_has_its_auto_classes(saved):
    assert type(transformers.AutoConfig.from_pretrained(saved["folder"] / "encoder")) is SamAudioConfig
    assert type(transformers.AutoModel.from_pretrained(saved["folder"] / "encoder")) is SamAudioModel
    assert type(transformers.AutoConfig.for_model("sam_alm")) is SamConfig


def test_auto_map_names_what_exists():
    for reference in AUTO_MAP.values():
        module, name = reference.split(".")
        assert module in CHECKPOINT_MODULES and isinstance(getattr(sys.modules[module], name), type)


def test_processor_is_not_saved_under_segment_anythings_name(saved):
    assert processing_sam.SamProcessor is processing_sam.SamAudioLanguageProcessor
    for name in ("processor_config.json", "tokenizer_config.json"):
        text = (saved["folder"] / "sam" / name).read_text()
        assert '"SamProcessor"' not in text, name
    found = json.loads((saved["folder"] / "sam" / "processor_config.json").read_text())
    assert found["processor_class"] == "SamAudioLanguageProcessor"


def test_importing_twice_is_harmless():
    for module in (modeling_sam, processing_sam):
        spec = importlib.util.spec_from_file_location(f"again_{module.__name__}", module.__file__)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    # and back to the first: the tests that follow compare classes
    for auto in (transformers.AutoModel, transformers.AutoModelForCausalLM, transformers.AutoModelForMultimodalLM):
        auto.register(SamConfig, SamForConditionalGeneration, exist_ok=True)
    transformers.AutoModel.register(SamAudioConfig, SamAudioModel, exist_ok=True)
    transformers.AutoFeatureExtractor.register(SamConfig, processing_sam.SamFeatureExtractor, exist_ok=True)
    transformers.AutoProcessor.register(SamConfig, processing_sam.SamAudioLanguageProcessor, exist_ok=True)


# -- Segment Anything ---------------------------------------------------------------------------------------------


SMALL_SEGMENT_ANYTHING = {
    "vision_config": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "output_channels": 16,
        "image_size": 64,
        "mlp_dim": 16,
        "global_attn_indexes": [],
    },
    "prompt_encoder_config": {"hidden_size": 16, "image_size": 64},
    "mask_decoder_config": {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "mlp_dim": 16,
        "iou_head_hidden_dim": 16,
    },
}


def test_segment_anything_keeps_its_own_classes(tmp_path):
    assert transformers.SamConfig is SegmentAnythingConfig is not SamConfig
    assert type(transformers.AutoConfig.for_model("sam")) is SegmentAnythingConfig
    mapping = transformers.AutoModel._model_mapping
    assert mapping[SegmentAnythingConfig].__module__ == "transformers.models.sam.modeling_sam"
    assert mapping[SamConfig] is SamForConditionalGeneration
    assert transformers.models.auto.modeling_auto.MODEL_FOR_MASK_GENERATION_MAPPING[SegmentAnythingConfig]
    name = "transformers.models.sam.processing_sam"
    assert processor_class_from_name("SamProcessor").__module__ == name
    assert PROCESSOR_MAPPING[SegmentAnythingConfig].__module__ == name
    assert PROCESSOR_MAPPING[SamConfig] is processing_sam.SamAudioLanguageProcessor

    config = SegmentAnythingConfig(**SMALL_SEGMENT_ANYTHING)
    model = transformers.AutoModel.from_config(config)
    assert type(model).__module__ == "transformers.models.sam.modeling_sam"
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is SegmentAnythingConfig
    for auto in (transformers.AutoModel, transformers.AutoModelForMaskGeneration):
        assert type(auto.from_pretrained(tmp_path)).__module__ == "transformers.models.sam.modeling_sam"


# -- Pipeline -----------------------------------------------------------------------------------------------------


def any_to_any(**options):
    """The pipeline of chats, which old releases of transformers lack or tie to further packages."""
    from transformers.pipelines import PIPELINE_REGISTRY

    if "any-to-any" not in PIPELINE_REGISTRY.get_supported_tasks():
        pytest.skip("this transformers has no any-to-any pipeline")
    try:
        return transformers.pipeline("any-to-any", **options)
    except ImportError as error:
        if "librosa" not in str(error):
            raise
        pytest.skip("the any-to-any pipeline of this old transformers needs librosa for any audio")


def test_pipeline(saved, wave):
    model, processor = tiny_model("frequency_major"), tiny_processor("frequency_major")
    pipe = any_to_any(model=model, processor=processor)
    chat = [
        {
            "role": "user",
            "content": [
                {"type": "audio", "audio": wave, "sampling_rate": 16000},
                {"type": "text", "text": PROMPT},
            ],
        }
    ]
    found = pipe(chat, max_new_tokens=8, return_full_text=False)[0]["generated_text"]
    prompt = len(processor(text=PROMPT, audio=wave, sampling_rate=16000)["input_ids"])
    expected = processor.decode(saved["tokens"][prompt:], skip_special_tokens=True)
    assert found == expected and expected
    found = any_to_any(model=str(saved["folder"] / "sam"))(chat, max_new_tokens=8)
    assert found[0]["generated_text"][-1] == {"role": "assistant", "content": expected}


def test_pipeline_batches_equal_single_answers(saved, tmp_path):
    """Chats, lists and dictionaries of prompts of unequal lengths, padded by transformers on either side."""
    for number, frequency in enumerate((300.0, 700.0, 1500.0)):
        soundfile.write(tmp_path / f"{number}.wav", tone(frequency=frequency), 16000, subtype="FLOAT")
    paths = [str(tmp_path / f"{number}.wav") for number in range(3)]
    texts = [PROMPT, PROMPT * 2 + " Is it a dog", "Rain?!"]
    decoding = {"max_new_tokens": 12, "suppress_tokens": [0, *range(95, 272)]}  # ASCII alone, all of the same length
    settings = {"generate_kwargs": decoding}
    pipe = any_to_any(model=str(saved["folder"] / "sam"))
    model, processor = pipe.model, pipe.processor
    expected = []
    for words, path in zip(texts, paths):
        inputs = processor(text=words, audio=path, return_tensors="pt")
        found = model.generate(**inputs, **decoding)[:, inputs["input_ids"].shape[1] :]
        expected.append(processor.decode(found[0], skip_special_tokens=True))
    assert len(set(expected)) == 3

    def answers(found):
        return [(each[0] if isinstance(each, list) else each)["generated_text"] for each in found]

    data = [base64.b64encode(Path(path).read_bytes()).decode() for path in paths]
    clips = [
        {"type": "audio", "path": paths[0]},
        {"type": "input_audio", "input_audio": {"data": data[1], "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data[2]}"}},
    ]
    chats = [[{"role": "user", "content": [sound, {"type": "text", "text": t}]}] for sound, t in zip(clips, texts)]
    settings["return_full_text"] = False
    for options in ({}, {"batch_size": 2}, {"batch_size": 3}):
        assert answers(pipe(chats, **settings, **options)) == expected
        rows = [{"text": words, "audio": path} for words, path in zip(texts, paths)]
        assert answers(pipe(rows, **settings, **options)) == expected
    assert answers(pipe(text=texts, audio=paths, **settings)) == expected
    assert answers(pipe(text=texts[1], audio=paths[1], **settings)) == expected[1:2]
    assert answers(pipe(chats[0], **settings)) == expected[:1]
    whole = pipe(chats, batch_size=3, **{**settings, "return_full_text": True})
    assert [each[0]["generated_text"][-1] for each in whole] == [
        {"role": "assistant", "content": each} for each in expected
    ]
    # a conversation that ends with an answer is continued
    begun = [*chats[0], {"role": "assistant", "content": expected[0][:3]}]
    inputs = processor.apply_chat_template(
        begun, tokenize=True, return_dict=True, return_tensors="pt", continue_final_message=True
    )
    rest = model.generate(**inputs, **decoding)[:, inputs["input_ids"].shape[1] :]
    assert answers(pipe(begun, **settings)) == processor.batch_decode(rest, skip_special_tokens=True)
    # transformers' advice for a tokenizer without padding, and its opposite
    pipe.tokenizer.pad_token_id = model.config.eos_token_id
    for side in ("left", "right"):
        pipe.tokenizer.padding_side = pipe.feature_extractor.padding_side = side
        assert answers(pipe(chats, batch_size=3, **settings)) == expected


# -- The code of a checkpoint -------------------------------------------------------------------------------------


def sibling_imports(body):
    """Yields each `from` import of another module of the model, and the statement of `body` around it."""
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Import):
                assert not any(alias.name.endswith("_sam") for alias in node.names), ast.unparse(node)
            if isinstance(node, ast.ImportFrom) and (node.level or node.module.endswith("_sam")):
                yield node, statement


@pytest.mark.parametrize("name", CHECKPOINT_MODULES)
def test_siblings_are_imported_by_the_guarded_idiom(name):
    """A relative import that fails in a checkpoint must not fall back to an installed package."""
    imported = set()
    for node, statement in sibling_imports(ast.parse((ROOT / f"{name}.py").read_text()).body):
        if node.level:
            names = ", ".join(alias.name for alias in node.names)
            assert ast.unparse(statement) == (
                f"try:\n    from .{node.module} import {names}\n"
                "except ImportError:\n    if __package__:\n        raise\n"
                f"    from {node.module} import {names}"
            )
            imported.add(node.module)
        else:
            assert isinstance(statement, ast.Try), ast.unparse(statement)
    assert set(get_relative_imports(ROOT / f"{name}.py")) == imported
    assert imported <= set(CHECKPOINT_MODULES)


def test_every_module_of_the_model_travels():
    assert sorted(CHECKPOINT_MODULES) == sorted(path.stem for path in ROOT.glob("*_sam.py"))
    assert {reference.split(".")[0] for reference in AUTO_MAP.values()} <= set(CHECKPOINT_MODULES)


def test_modules_are_copied_from_beside_the_copying_one_and_else_from_the_checkpoint(tmp_path):
    for folder in ("cache", "checkpoint", "saved", "part"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "hub_sam.py", tmp_path / "cache")
    for name in ("hub_sam", "mamba_sam"):
        (tmp_path / "checkpoint" / f"{name}.py").write_text("the checkpoint's")
    specification = importlib.util.spec_from_file_location("cached_hub_sam", tmp_path / "cache" / "hub_sam.py")
    cached = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(cached)
    cached.copy_checkpoint_modules(tmp_path / "part")
    cached.copy_checkpoint_modules(tmp_path / "part", "acme/sam")  # an id of the Hub is no directory
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["hub_sam.py"]
    cached.copy_checkpoint_modules(tmp_path / "saved", tmp_path / "checkpoint")
    found = {path.name: path.read_text() for path in (tmp_path / "saved").iterdir()}
    assert found == {"hub_sam.py": (ROOT / "hub_sam.py").read_text(), "mamba_sam.py": "the checkpoint's"}
    # source and target are the same file
    copy_checkpoint_modules(ROOT)
    cached.copy_checkpoint_modules(tmp_path / "checkpoint", tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint" / "mamba_sam.py").read_text() == "the checkpoint's"


def test_a_process_that_is_not_the_main_one_saves_no_code(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "ours", is_main_process=False)
    # transformers before 5.17 copies its part of the code in every process
    transformers.PreTrainedModel.save_pretrained(model, tmp_path / "plain", is_main_process=False)
    ours, plain = ({file.name for file in folder.iterdir()} for folder in sorted(tmp_path.iterdir()))
    assert ours == plain and "README.md" not in ours


@pytest.mark.slow
def test_a_checkpoint_whose_code_lacks_a_name_is_refused_though_the_package_has_it(saved, tmp_path):
    shutil.copytree(saved["folder"] / "sam", tmp_path / "sam")
    module = tmp_path / "sam" / "mamba_sam.py"
    module.write_text(module.read_text().replace("given_cache", "another_cache"))
    code = f"""
    import transformers, mamba_sam
    mamba_sam.given_cache
    transformers.AutoModel.from_pretrained({str(tmp_path / "sam")!r}, trust_remote_code=True)
    """
    done = process(code, tmp_path / "process", path=[ROOT])
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: cannot import name 'given_cache' from 'transformers_modules."), done.stderr


@pytest.mark.slow
def test_a_processor_alone_needs_no_code_of_the_model(saved, tmp_path):
    shutil.copytree(saved["folder"] / "sam", tmp_path / "sam")
    for name in ("modeling_sam", "weights_sam", "generation_sam", "mamba_sam", "kernels_sam"):
        (tmp_path / "sam" / f"{name}.py").unlink()
    code = f"""
    from transformers import AutoProcessor
    processor = AutoProcessor.from_pretrained({str(tmp_path / "sam")!r}, trust_remote_code=True)
    inputs = processor(text={PROMPT!r}, audio={str(saved["folder"] / "clip.wav")!r})
    processor.save_pretrained({str(tmp_path / "again")!r})
    print("result:", json.dumps([type(processor).__module__.split(".")[0], len(inputs["input_ids"])]))
    """
    home, length = fresh(code, tmp_path / "process")
    assert home == "transformers_modules" and length > 520
    copied = {path.stem for path in (tmp_path / "again").glob("*.py")}
    assert copied == {
        "configuration_sam",
        "hub_sam",
        "checks_sam",
        "films_sam",
        "containers_sam",
        "sound_files_sam",
        "audio_sam",
        "collator_sam",
        "chat_sam",
        "processing_sam",
    }


@pytest.mark.slow
def test_transformers_trainer_stays_as_it_is(tmp_path):
    code = f"""
    from transformers import Trainer
    methods = dict(vars(Trainer))
    import sam_alm
    from tiny import tiny_model
    tiny_model().save_pretrained({str(tmp_path / "sam")!r})
    print("result:", json.dumps(methods == dict(vars(Trainer))))
    """
    assert fresh(code, tmp_path / "process", path=[ROOT, ROOT / "tests"]) is True


# -- Fresh processes ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_imports_register_everything(saved, tmp_path):
    code = f"""
    import transformers
    import modeling_sam, processing_sam
    from transformers.models.auto.processing_auto import processor_class_from_name
    found = {{}}
    for name in {list(AUTO_MAP)!r}:
        part = getattr(transformers, name).from_pretrained({str(saved["folder"] / "sam")!r})
        found[name] = f"{{type(part).__module__}}.{{type(part).__name__}}"
    mapping = transformers.AutoModel._model_mapping
    theirs = [mapping[transformers.SamConfig].__module__, processor_class_from_name("SamProcessor").__module__]
    unwanted = [name for name in ("PIL", "peft", "datasets", "sam_lab") if name in sys.modules]
    print("result:", json.dumps([found, theirs, unwanted]))
    """
    found, theirs, unwanted = fresh(code, tmp_path / "process", path=[ROOT])
    assert found == AUTO_MAP
    assert theirs == ["transformers.models.sam.modeling_sam", "transformers.models.sam.processing_sam"]
    assert "sam_lab" not in unwanted


@pytest.mark.slow
def test_a_saved_directory_is_enough(saved, tmp_path):
    """Without the package: every Auto class, the same answer, a copy for another process, and an adapter."""
    folder = saved["folder"]
    load = f"""
    import torch, transformers
    refused = []

    def load(name, directory, **options):
        auto = getattr(transformers, name)
        return auto.from_pretrained(directory, trust_remote_code=True, **options)

    def answer(model, processor):
        inputs = processor(text={PROMPT!r}, audio={str(folder / "clip.wav")!r}, return_tensors="pt")
        return model.generate(**inputs, max_new_tokens=8)[0].tolist()
    """
    first = (
        load
        + f"""
    directory = {str(folder / "sam")!r}
    for name in {list(AUTO_MAP)!r}:
        try:
            getattr(transformers, name).from_pretrained(directory)
        except ValueError as error:
            refused.append("trust_remote_code=True" in str(error))
    parts = {{name: load(name, directory) for name in {list(AUTO_MAP)!r}}}
    processor = parts["AutoProcessor"]
    answers = [answer(parts[name], processor) for name in {MODEL_AUTO_CLASSES!r}]
    model = load("AutoModel", directory, dtype=torch.bfloat16)
    kept = {{str(p.dtype) for name, p in model.named_parameters() if name.endswith(("A_log", "D", "dt_bias"))}}
    # continued generation: the cache is of the copy's own class
    inputs = processor(text={PROMPT!r}, audio={str(folder / "clip.wav")!r}, return_tensors="pt")
    model = parts["AutoModel"]
    half = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
    rest = model.generate(half.sequences, past_key_values=half.past_key_values, max_new_tokens=4)
    answers.append(rest[0].tolist())
    for name in ("AutoModel", "AutoProcessor"):
        parts[name].save_pretrained({str(tmp_path / "again")!r})
    names = [type(part).__name__ for part in parts.values()]
    homes = {{type(part).__module__.split(".")[0] for part in parts.values()}}
    print("result:", json.dumps([refused, names, sorted(homes), answers, sorted(kept)]))
    """
    )
    refused, names, homes, answers, kept = fresh(first, tmp_path / "first")
    assert refused == [True] * 6
    assert names == [reference.split(".")[1] for reference in AUTO_MAP.values()]
    assert homes == ["transformers_modules"]
    assert answers == [saved["tokens"]] * 4
    assert kept == ["torch.float32"]

    for name in CHECKPOINT_MODULES:
        assert (tmp_path / "again" / f"{name}.py").read_bytes() == (ROOT / f"{name}.py").read_bytes()
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"] == AUTO_MAP
    second = (
        load
        + f"""
    import peft
    directory = {str(tmp_path / "again")!r}
    model, processor = load("AutoModelForCausalLM", directory), load("AutoProcessor", directory)
    answers = [answer(model, processor)]
    adapted = peft.PeftModel.from_pretrained(model, {str(folder / "adapter")!r})
    answers += [answer(adapted, processor), answer(adapted.merge_and_unload(), processor)]
    print("result:", json.dumps(answers))
    """
    )
    answers = fresh(second, tmp_path / "second")
    assert answers == [saved["tokens"], saved["adapted"], saved["adapted"]]


@pytest.mark.slow
def test_an_encoder_alone_needs_no_package(saved, tmp_path):
    code = f"""
    import torch
    from transformers import AutoModel
    encoder = AutoModel.from_pretrained({str(saved["folder"] / "encoder")!r}, trust_remote_code=True)
    heard = encoder(torch.ones(1, 1024, 128)).last_hidden_state.flatten()[:4].tolist()
    print("result:", json.dumps(heard))
    """
    assert fresh(code, tmp_path / "process") == pytest.approx(saved["heard"], abs=1e-5)
