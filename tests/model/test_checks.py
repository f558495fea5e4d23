"""Checks: what used to become a fluent answer about something else is refused, and the error names it."""

import json
import logging

import datasets
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from tiny import tiny_config, tiny_inputs, tiny_model, tiny_processor, tone
from transformers import AutoModel, AutoModelForCausalLM, Trainer, TrainingArguments

from checks_sam import LabelWatch, check_texts, special_tokens
from modeling_sam import SamAudioModel, SamForConditionalGeneration, SamModel
from processing_sam import SamDataCollator, SamFeatureExtractor, SamProcessor

PROMPT = "What do you hear?"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture
def inputs(processor):
    audio = [tone(frequency=440.0), tone(frequency=880.0)]
    return dict(processor(text=[PROMPT, "Why?"], audio=audio, sampling_rate=16000, return_tensors="pt"))


# -- Texts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|padding|>"])
def test_special_tokens_in_texts_are_refused(token):
    tokenizer = tiny_processor().tokenizer
    tokenizer.add_tokens(["<|padding|>"], special_tokens=True)  # as GPT-NeoX's: special, and no named token
    processor = SamProcessor(SamFeatureExtractor(), tokenizer)
    marked = f"a{token}b"
    for arguments, name in (
        ({"text": ["a", marked]}, "text"),
        ({"text": ["a", "a"], "answer": ["b", marked]}, "answer"),
    ):
        with pytest.raises(ValueError, match=rf"{name}: got the special token .* in 'a<.*>b' at position 1") as error:
            processor(**arguments)
        assert token in str(error.value)
    row = {"question": "?", "audio": None, "truth": "a"}
    collator = SamDataCollator(processor, prompt_column="question", answer_column="truth")
    for column in ("question", "truth"):
        with pytest.raises(ValueError, match=f"{column}: got the special token"):
            collator([row, {**row, column: marked}])


def test_ordinary_text_is_not_refused(processor):
    texts = [
        "<endoftext>",
        "< |endoftext|>",
        "<|END|>",
        "&&",
        "a | b <",
        "|audio|",
        "  \n\n  x",
        "[PAD] <pad> </s>",
        "!",
    ]
    rows = processor(text=texts, answer=[*texts])["input_ids"]
    for text, ids in zip(texts, rows):
        assert text in processor.tokenizer.decode(ids)


def test_special_tokens_of_a_tokenizer():
    tokenizer = tiny_processor().tokenizer
    assert set(special_tokens(tokenizer)) == {"<|endoftext|>", "<|audio|>"}
    tokenizer.add_tokens(["    "])  # GPT-NeoX's runs of spaces: added, but text
    tokenizer.pad_token = "!"  # a padding token of one character, as CLIP's
    tokenizer.add_special_tokens({"unk_token": "<unk>", "additional_special_tokens": ["<|a|>"]})
    assert set(special_tokens(tokenizer)) == {"<|endoftext|>", "<|audio|>", "<|a|>"}


def test_a_caller_says_which_special_tokens_may_stand():
    check_texts("text", ["a<|endoftext|>b"], ["<|audio|>"])  # a chat of two turns, rendered
    with pytest.raises(ValueError, match="at position 1"):
        check_texts("text", ["a", "a<|endoftext|>b"], ["<|audio|>", "<|endoftext|>"])


def test_special_tokens_in_candidates_are_refused(model, processor, inputs):
    with pytest.raises(ValueError, match=r"candidates: got the special token <\|endoftext\|>"):
        model.score_candidates(processor, inputs, ["A dog.", "A dog.<|endoftext|>"])


# -- Tensors ------------------------------------------------------------------------------------------------------


def with_value(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


NAN, INFINITY = float("nan"), float("inf")
WRONG = {
    "nan": (lambda i: {"input_features": with_value(i["input_features"], (1, 5, 5), NAN)}, "clip 1 of 2.*not finite"),
    "inf": (lambda i: {"input_features": with_value(i["input_features"], (0, 9, 0), -INFINITY)}, "clip 0 of 2"),
    "half": (lambda i: {"input_features": (i["input_features"] * 1e5).half()}, "clip 0 of 2.*not finite"),
    "integers": (lambda i: {"input_features": i["input_features"].long()}, "input_features: got int64"),
    "negative": (
        lambda i: {"input_ids": with_value(i["input_ids"], (1, -1), -1)},
        "ids from -1 to 258.*from 0 to 271",
    ),
    "large": (lambda i: {"input_ids": with_value(i["input_ids"], (1, -1), 272)}, "ids from 0 to 272.*from 0 to 271"),
    "floats": (lambda i: {"input_ids": i["input_ids"].float()}, "input_ids: got float32 of shape"),
    "a mask as ids": (lambda i: {"input_ids": i["attention_mask"].bool()}, "input_ids: got bool of shape"),
    "no tokens": (
        lambda i: {name: i[name][:, :0] for name in ("input_ids", "attention_mask")},
        r"input_ids: got the shape \[2, 0\], expected a prompt",
    ),
    "one axis": (lambda i: {"input_ids": i["input_ids"][0]}, "input_ids: got int64 of shape .* expected .*B, L"),
    "no real position": (
        lambda i: {"attention_mask": with_value(i["attention_mask"], 1, 0)},
        r"attention_mask: got no real position in the rows \[1\]",
    ),
    "short mask": (lambda i: {"attention_mask": i["attention_mask"][:, 1:]}, "attention_mask: got the shape"),
    "long mask": (lambda i: {"attention_mask": i["attention_mask"].repeat(1, 2)}, "attention_mask: got the shape"),
    "lists": (
        lambda i: {"input_ids": i["input_ids"].tolist()},
        "input_ids: got list, expected a tensor.*return_tensors",
    ),
    "an answer": (lambda i: {"labels": i["input_ids"]}, "labels: got labels, expected a prompt alone"),
    "attentions": (lambda i: {"output_attentions": True}, "output_attentions: got True"),
}


@pytest.mark.parametrize("case", WRONG)
def test_generate_refuses(model, inputs, case):
    change, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        model.generate(**{**inputs, **change(inputs)}, max_new_tokens=2)


@pytest.mark.parametrize("case", ["nan", "inf", "negative", "large", "no real position", "short mask"])
def test_score_candidates_refuses(model, processor, inputs, case):
    change, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        model.score_candidates(processor, {**inputs, **change(inputs)}, ["A dog."])


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True, "top_k": 3}])
def test_weights_that_are_not_finite_give_no_answer(processor, inputs, options):
    model = tiny_model()
    with torch.no_grad():
        model.model.connector.linear_2.bias[0] = NAN
    with pytest.raises(ValueError, match=r"logits: got NaN in the rows \[0, .*float16"):
        model.generate(**inputs, **options, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"log-likelihoods: got NaN in the rows \[0, 1\]"):
        model.score_candidates(processor, inputs, ["A dog."])


def test_arguments_by_position_are_named(model, processor, inputs):
    features = inputs["input_features"]
    for wrong, message in ((features, "inputs: got float32 of shape"), (inputs, "inputs: got dict"), ("a", "got str")):
        with pytest.raises(ValueError, match=f"{message}.*by name"):
            model.generate(wrong)
    with pytest.raises(ValueError, match="inputs: got float32"):
        model.generate(inputs=features)
    with pytest.raises(ValueError, match=r"input_ids: got float32 of shape .*input_features="):
        model(features)
    with pytest.raises(ValueError, match=r"input_ids: got the processor's whole result.*model\(\*\*inputs\)"):
        model(inputs)
    tokens = model.generate(inputs["input_ids"], input_features=features, attention_mask=inputs["attention_mask"])
    assert torch.equal(tokens, model.generate(**inputs))  # ids may stand first
    output = model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True)
    with pytest.raises(ValueError, match=r"sequences: got .*\.sequences"):
        processor.batch_decode(output)


@pytest.mark.parametrize("labels", [lambda ids: ids.T, lambda ids: ids[:, 1:], lambda ids: ids[0]])
def test_labels_of_another_shape_are_refused(model, inputs, labels):
    with pytest.raises(ValueError, match=r"labels: got the shape .* expected that of input_ids"):
        model(**inputs, labels=labels(inputs["input_ids"]))


def test_features_without_normalisation_are_warned_of(model, processor, inputs, caplog):
    extractor = processor.feature_extractor
    raw = inputs["input_features"] * 2 * extractor.std + extractor.mean  # log-mel as it is
    for features, warns in ((inputs["input_features"], 0), (raw, 1), (torch.zeros_like(raw), 1)):
        caplog.clear()
        model.generate(**{**inputs, "input_features": features}, max_new_tokens=1)
        assert sum("not those of the processor's" in record.getMessage() for record in caplog.records) == warns


# -- Collator -----------------------------------------------------------------------------------------------------


def processed(processor, **changes):
    row = dict(processor(text=PROMPT, answer="a dog", audio=tone(), sampling_rate=16000))
    return {**row, "input_features": np.stack(row["input_features"]), **changes}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "input_ids",
            lambda v: [*v[:-1], 259],
            "input_ids: row 1 of the batch has 259, expected tokens from 0 to 258",
        ),
        ("input_ids", lambda v: [*v[:-1], -3], "input_ids: row 1 of the batch has -3"),
        ("input_ids", lambda v: [v, v], r"input_ids: row 1 of the batch has int64 of shape \[2, \d+\]"),
        ("input_ids", lambda v: np.array(v, float), "input_ids: row 1 of the batch has float64"),
        ("labels", lambda v: [*v[:-1], 259], "labels: row 1 of the batch has 259"),
        ("labels", lambda v: [*v[:-1], -5], "labels: row 1 of the batch has -5"),
        ("labels", lambda v: [*v[:-1], 258], r"labels: row 1 of the batch has 258.*without <\|audio\|>"),
        ("labels", lambda v: v[:-1], "labels: row 1 of the batch has"),
        ("attention_mask", lambda v: v[:-1], "attention_mask: row 1 of the batch has"),
        ("input_features", lambda v: v * np.nan, "input_features: row 1 of the batch, clip 0 of 1.*not finite"),
        ("input_features", lambda v: v * np.inf, "input_features: row 1 of the batch, clip 0 of 1.*not finite"),
    ],
)
def test_collator_names_the_row(processor, name, change, message):
    row = processed(processor)
    with pytest.raises(ValueError, match=message):
        SamDataCollator(processor)([row, {**row, name: change(row[name])}])


def test_collator_names_what_a_table_lacks(processor):
    row = {"audio": None, "prompt": "What?", "answer": "Rain."}
    for change, message in (
        ({"audio": NAN}, "audio: got nan at position 1, expected a clip, a list of clips or None"),
        ({"prompt": None}, "prompt: got None at position 1, expected a string"),
        ({"answer": NAN}, "answer: got nan at position 1, expected a string"),
        ({"prompt": "### Instruction: What? ### Response:"}, "prompt, position 1: got .* headings of a rendered"),
    ):
        with pytest.raises(ValueError, match=message):
            SamDataCollator(processor)([row, {**row, **change}])


# -- Batches without labels ---------------------------------------------------------------------------------------


def unlabelled(processor, number, labelled=()):
    ids = processor.tokenize_texts(["abcdef"])[0]
    return datasets.Dataset.from_list(
        [{"input_ids": ids, "labels": ids if index in labelled else [-100] * len(ids)} for index in range(number)]
    )


def trainer(processor, folder, rows, eval_dataset=None, **options):
    arguments = {"per_device_train_batch_size": 2, "num_train_epochs": 2, "save_strategy": "no", **options}
    arguments = TrainingArguments(str(folder), report_to="none", use_cpu=True, disable_tqdm=True, **arguments)
    collator = SamDataCollator(processor)
    return Trainer(tiny_model(), arguments, collator, train_dataset=rows, eval_dataset=eval_dataset)


@pytest.fixture
def log(caplog):
    """How many messages have a text: of ours, and of transformers' loggers, which pass on none."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    yield lambda text: sum(text in record.getMessage() for record in caplog.records)
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [1, 8])
def test_an_epoch_without_labels_is_an_error(processor, tmp_path, log, workers, number):
    training = trainer(processor, tmp_path, unlabelled(processor, number), dataloader_num_workers=workers)
    with pytest.raises(ValueError, match=rf"labels: got only -100 in all {-(-number // 2)} batches"):
        training.train()
    if not workers:  # a worker's own process warns otherwise
        assert log("has only -100") == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_without_labels_is_a_warning(processor, tmp_path, log, workers):
    training = trainer(processor, tmp_path, unlabelled(processor, 8, {5}), dataloader_num_workers=workers)
    assert training.train().global_step == 8
    if not workers:
        assert log("has only -100") == 1


def test_without_trainer_a_loop_ends_too(processor):
    rows, collator = list(unlabelled(processor, 6)), SamDataCollator(processor)
    with pytest.raises(ValueError, match="labels: got only -100"):  # workers know the rows
        list(torch.utils.data.DataLoader(rows, batch_size=2, num_workers=2, collate_fn=collator))
    with pytest.raises(ValueError, match="labels: got only -100 in the first 100 batches"):
        for _ in range(100):
            collator(rows[:2])


@pytest.mark.parametrize(("number", "read"), [(120, 120), (60, 100), (10, 20)])
def test_one_of_several_processes_sees_its_part_of_an_epoch(processor, monkeypatch, number, read):
    rows = list(unlabelled(processor, number))
    loader = torch.utils.data.DataLoader(rows, batch_size=1, collate_fn=SamDataCollator(processor))
    loader = Accelerator(cpu=True).prepare(loader)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=f"only -100 in all {read} batches"):
        for _ in range(2):
            assert sum(1 for _ in loader) == number < read


def test_first_labels_are_not_learned():
    watch = LabelWatch()
    with pytest.raises(ValueError, match="only -100"):
        for _ in range(100):
            watch([[5, -100, -100], [7]])


# -- Weights ------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    return model, tmp_path


def change_config(folder, part, **values):
    config = json.loads((folder / "config.json").read_text())
    (config if part is None else config[part]).update(values)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForCausalLM, SamForConditionalGeneration, SamModel])
@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("text_config", {"num_hidden_layers": 1}, "has 9 tensors that its configuration has no place for.*layers.1"),
        ("audio_config", {"num_hidden_layers": 1}, "has 12 tensors .*no place for.*audio_tower.blocks.1"),
        ("text_config", {"num_hidden_layers": 3}, "lacks 9 tensors .*layers.2"),
        ("audio_config", {"num_hidden_layers": 3}, "lacks 12 tensors .*audio_tower.blocks.2"),
        ("text_config", {"use_bias": True}, "lacks 4 tensors .*bias"),
        ("text_config", {"use_conv_bias": False}, "has 2 tensors .*conv1d.bias"),
    ],
)
def test_half_a_checkpoint_is_refused(saved, kind, part, values, message):
    _, folder = saved
    change_config(folder, part, **values)
    with pytest.raises(ValueError, match=f"Sam.*: the checkpoint .*{message}"):
        kind.from_pretrained(folder)
    assert kind.from_pretrained(folder, ignore_mismatched_sizes=True) is not None
    _, report = kind.from_pretrained(folder, output_loading_info=True)
    assert report["missing_keys"] or report["unexpected_keys"]


def test_an_untied_head_that_is_missing_is_refused(saved):
    _, folder = saved
    change_config(folder, None, tie_word_embeddings=False)
    change_config(folder, "text_config", tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"lacks 1 tensors .*lm_head.weight.*tie_word_embeddings"):
        AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("values", [{"num_hidden_layers": 1}, {"num_hidden_layers": 3}])
def test_half_an_encoder_is_refused(tmp_path, values):
    encoder = tiny_model().model.audio_tower
    encoder.save_pretrained(tmp_path)
    change_config(tmp_path, None, **values)
    for kind in (AutoModel, SamAudioModel):
        with pytest.raises(ValueError, match="SamAudioModel: the checkpoint"):
            kind.from_pretrained(tmp_path)


def test_parts_of_a_whole_checkpoint_load(saved, log):
    model, folder = saved
    part = model.model.save_pretrained(folder / "part") or folder / "part"
    for kind, place, ours in (
        (SamModel, folder, model.model),
        (SamAudioModel, folder, model.model.audio_tower),
        (SamModel, part, model.model),
        (SamForConditionalGeneration, part, model),
    ):
        loaded = kind.from_pretrained(place).state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in ours.state_dict().items())
    assert not log("UNEXPECTED")
    change_config(folder, "audio_config", num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"SamAudioModel.*no place for, such as .*blocks\.1"):
        SamAudioModel.from_pretrained(folder)


def test_other_ways_to_load_are_checked_too(saved, tmp_path):
    model, folder = saved
    (folder / "inside").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(folder / "inside" / name)
    assert AutoModel.from_pretrained(folder, subfolder="inside", device_map="cpu", dtype=torch.bfloat16) is not None
    weights = safetensors.torch.load_file(folder / "inside" / "model.safetensors")
    renamed = {name.replace("language_model", "backbone"): value for name, value in weights.items()}
    safetensors.torch.save_file(renamed, folder / "inside" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="tensors that its configuration has no place for"):
        AutoModel.from_pretrained(folder, subfolder="inside")
    mapping = {"backbone": "language_model"}
    loaded = AutoModel.from_pretrained(folder, subfolder="inside", key_mapping=mapping)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    state = {name: value for name, value in model.state_dict().items() if "connector" not in name}
    with pytest.raises(ValueError, match=r"state_dict lacks 4 tensors .*connector"):
        SamForConditionalGeneration.from_pretrained(None, config=tiny_config(), state_dict=state)


def test_the_base_below_an_adapter_is_checked(saved, tmp_path):
    _, folder = saved
    adapted = peft.get_peft_model(AutoModel.from_pretrained(folder), peft.LoraConfig(target_modules=["linear_1"]))
    adapted.save_pretrained(folder / "adapter")
    assert any("lora_A" in name for name, _ in AutoModel.from_pretrained(folder / "adapter").named_parameters())
    change_config(folder, "text_config", num_hidden_layers=1)
    with pytest.raises(ValueError, match="has 9 tensors that its configuration has no place for"):
        AutoModel.from_pretrained(folder / "adapter")


def test_a_saved_state_loads_where_the_head_is_tied(saved):
    model, folder = saved
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights
    for assign in (False, True):
        other = tiny_model(seed=1)
        result = other.load_state_dict(dict(weights), strict=False, assign=assign)
        assert not result.missing_keys and not result.unexpected_keys
        assert other.lm_head.weight is other.get_input_embeddings().weight
        assert torch.equal(other(**tiny_inputs()).logits, model(**tiny_inputs()).logits)
    tiny_model(seed=1).load_state_dict(weights)  # strictly
    untied = SamForConditionalGeneration(tiny_config(tie_word_embeddings=False))
    assert "lm_head.weight" in untied.load_state_dict(weights, strict=False).missing_keys


def test_trainer_resumes_and_loads_the_best_without_a_false_warning(processor, tmp_path, log):
    rows = unlabelled(processor, 4, range(4))
    options = {
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "num_train_epochs": 1,
    }
    first = trainer(processor, tmp_path, rows, rows, **options, load_best_model_at_end=True)
    first.train()
    assert first.state.best_model_checkpoint
    second = trainer(processor, tmp_path, rows, rows, **options)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert not log("missing keys")
    assert second.model.lm_head.weight is second.model.get_input_embeddings().weight


# -- Names of arguments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "speech", ["clip.wav", ["clip.wav"], b"RIFF", None, {"array": tone(), "sampling_rate": 16000}, object()]
)
def test_feature_extractor_names_what_is_no_waveform(speech):
    for options in ({}, {"sampling_rate": 16000}):
        with pytest.raises(TypeError, match=r"raw_speech: got .*load_audio\(path\)"):
            SamFeatureExtractor()(speech, **options)


def test_feature_extractor_refuses_channels_and_integers_as_floats():
    extractor = SamFeatureExtractor()
    with pytest.raises(ValueError, match=r"raw_speech: got the shape \(16000, 2\), expected mono"):
        extractor(np.stack([tone(), tone()], axis=1), 16000)
    for samples in (tone() * 32768, torch.from_numpy(tone() * 32768)):
        with pytest.raises(ValueError, match=r"raw_speech: got samples up to 9830.*int16"):
            extractor(samples, 16000)
    whole = np.round(tone() * 32768).astype(np.int16)
    ours, same = (extractor(each, 16000, "pt")["input_features"] for each in (whole, whole / np.float32(32768)))
    assert torch.equal(ours, same)
    with pytest.raises(ValueError, match="feature_size: got 'a/folder', expected a positive integer"):
        SamFeatureExtractor("a/folder")


def test_processor_names_what_was_mixed_up(processor, tmp_path, monkeypatch):
    chat = [{"role": "user", "content": "Hi"}]
    for text in (chat, [chat, chat]):
        with pytest.raises(ValueError, match=r"text: got .*processor.apply_chat_template\(chat"):
            processor(text)
    with pytest.raises(ValueError, match=r"(?s)text: got array.*audio=\.\.\."):
        processor(tone())
    with pytest.raises(ValueError, match=r"answer: got 16000.*sampling_rate=\.\.\."):
        processor(PROMPT, tone(), 16000)
    with pytest.raises(TypeError, match=r"unexpected arguments: audios \(is it audio\?\)"):
        processor(PROMPT, audios=tone())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.wav").write_bytes(b"RIFF")
    for arguments in ({"text": "clip.wav"}, {"text": "clip.wav", "audio": "What?"}):
        with pytest.raises(ValueError, match=r"text: got the path of a file, 'clip.wav'.*audio="):
            processor(**arguments)
