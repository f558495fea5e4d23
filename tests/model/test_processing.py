"""The prompt, the slots, the labels, saving, chats and batches."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from shared import NEOX, SOUNDS, needs, shared
from tiny import tiny_tokenizer, tone
from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

import audio_sam
import collator_sam
from processing_sam import SamDataCollator, SamFeatureExtractor, SamProcessor, load_audio

ROOT = Path(__file__).resolve().parents[2]
SLOTS = {"concatenation": 64, "time_major": 576, "frequency_major": 520}
AUDIO, SEPARATOR, END = 258, 257, 0  # ids of the tiny tokenizer


def clip(seconds=1.0, frequency=440.0):
    return {"array": tone(seconds, frequency=frequency), "sampling_rate": 16000}


def features_of(*waveforms):
    return SamFeatureExtractor()(list(waveforms), sampling_rate=16000, return_tensors="pt")["input_features"]


@pytest.fixture
def processor():
    return SamProcessor(SamFeatureExtractor(), tiny_tokenizer())


@pytest.fixture(scope="module")
def neox():
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(shared(NEOX)), eos_token="<|endoftext|>")
    return SamProcessor(SamFeatureExtractor(), tokenizer)


# -- The sequence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connector", SLOTS)
def test_slots_and_separators(connector):
    processor = SamProcessor(SamFeatureExtractor(), tiny_tokenizer(), connector=connector)
    ids = processor(text="Hi", audio=clip())["input_ids"]
    slots = ids[: SLOTS[connector]]
    positions = {
        "concatenation": [],
        "time_major": [9 * step + 8 for step in range(64)],
        "frequency_major": [65 * band + 64 for band in range(8)],
    }[connector]
    assert [index for index, token in enumerate(slots) if token == SEPARATOR] == positions
    assert slots.count(AUDIO) == SLOTS[connector] - len(positions) == (64 if connector == "concatenation" else 512)
    rest = ids[SLOTS[connector] :]
    assert processor.tokenizer.decode(rest) == "### Instruction:\nHi\n\n### Response:\n"
    assert AUDIO not in rest


def test_neox_ids(neox):
    assert neox.audio_token == "<|audio|>" and neox.audio_token_id == 50277 and neox.separator_token_id == 10494
    assert len(neox.tokenizer) == 50278
    prompts = {
        "Close-ended question: Write an audio caption describing the sound.": 23,
        "Close-ended question: Write an audio caption describing the sound, in AudioCaps style.": 29,
        "Close-ended question: Create a caption for audio, in Clotho style.": 27,
    }
    for prompt, count in prompts.items():
        ids = neox(text=prompt)["input_ids"]
        assert len(ids) == count
        assert ids[:4] == [4118, 41959, 27, 187] and ids[-6:] == [187, 187, 4118, 19371, 27, 187]
        assert neox(text=prompt, audio=clip())["input_ids"] == [50277] * 64 + ids


def test_prompt_and_answer_apart_equal_jointly_tokenised(neox):
    for answer in ("A dog barks.", " a dog", "yes", "3 birds", "Audio caption: rain; wind"):
        output = neox(text="What is it?", answer=answer)
        joint = neox.tokenizer(f"### Instruction:\nWhat is it?\n\n### Response:\n{answer}")["input_ids"]
        assert output["input_ids"] == joint + [0]
        supervised = [token for token in output["labels"] if token != -100]
        assert neox.tokenizer.decode(supervised) == answer + "<|endoftext|>"


def test_labels(processor):
    output = processor(text="Hi", audio=clip(), answer="dog")
    answer = processor.tokenizer("dog")["input_ids"] + [END]
    assert output["input_ids"][-4:] == answer and output["labels"][-4:] == answer
    assert set(output["labels"][:-4]) == {-100}
    # LTU's variant also trains on the text of the prompt, and on no slot of either kind.
    wide = SamProcessor(SamFeatureExtractor(), tiny_tokenizer(), connector="time_major")
    output = wide(text="a && b", audio=clip(), answer="dog", train_on_prompt=True)
    assert output["labels"] == [-100] * 576 + output["input_ids"][576:]
    assert SEPARATOR in output["labels"]  # the prompt's own && is text


def test_padding_is_masked_and_end_of_text_kept(processor):
    texts, answers = ["Hi", "Hello there"], ["a dog", "x"]
    audio = [clip(), clip(0.5, 900.0)]
    batch = processor(text=texts, audio=audio, answer=answers, return_tensors="pt")
    assert processor.tokenizer.pad_token_id == END  # which is a token, too: the mask alone tells
    for row, (text, sound, answer) in enumerate(zip(texts, audio, answers)):
        single = processor(text=text, audio=sound, answer=answer)
        length = len(single["input_ids"])
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (len(batch["input_ids"][row]) - length)
        assert batch["input_ids"][row, :length].tolist() == single["input_ids"]
        assert batch["labels"][row, :length].tolist() == single["labels"]
        assert batch["labels"][row, length - 1] == END and set(batch["labels"][row, length:].tolist()) <= {-100}
        torch.testing.assert_close(batch["input_features"][row], torch.from_numpy(single["input_features"][0]))
    left = processor(text=texts, audio=audio, return_tensors="pt")
    assert "labels" not in left
    assert left["attention_mask"][0, 0] == 0 and left["attention_mask"][:, -1].tolist() == [1, 1]
    assert left["input_ids"][0, -2:].tolist() == left["input_ids"][1, -2:].tolist()


def test_padding_options(processor):
    texts = ["Hi", "Hello there"]
    right = processor(text=texts, padding_side="right", return_tensors="np", pad_to_multiple_of=64)
    assert right["input_ids"].shape == (2, 64) and right["attention_mask"][0, 0] == 1
    loose = processor(text=texts, padding=False)
    assert [len(row) for row in loose["input_ids"]] == [len(row) for row in loose["attention_mask"]]
    assert len(loose["input_ids"][0]) < len(loose["input_ids"][1])
    with pytest.raises(ValueError, match="padding: got False"):
        processor(text=texts, padding=False, return_tensors="pt")
    with pytest.raises(ValueError, match="padding: got 'max_length'"):
        processor(text=texts, padding="max_length")
    with pytest.raises(ValueError, match="padding_side: got 'middle'"):
        processor(text=texts, padding_side="middle")
    processor.tokenizer.pad_token = "&&"
    padded = processor(text=texts, return_tensors="pt")
    assert padded["input_ids"][0, 0] == SEPARATOR and padded["attention_mask"][0, 0] == 0


def test_return_types(processor):
    single = processor(text="Hi", audio=clip(), answer="x")
    assert isinstance(single["input_ids"][0], int) and isinstance(single["labels"][0], int)
    assert single["input_features"][0].shape == (1024, 128)
    array = processor(text="Hi", audio=clip(), return_tensors="np")
    assert array["input_ids"].shape[0] == 1 and array["input_features"].dtype == np.float32
    tensor = processor(text=["Hi"], audio=clip(), return_tensors="pt")
    assert tensor["input_ids"].dtype == torch.int64 and tensor["input_features"].dtype == torch.float32
    assert processor(text=["Hi"])["input_ids"][0] == processor(text="Hi")["input_ids"]
    assert set(tensor.to("cpu")) == {"input_ids", "attention_mask", "input_features"}
    only_audio = processor(audio=[clip(), clip(2.0)], return_tensors="pt")
    assert set(only_audio) == {"input_features"} and only_audio["input_features"].shape == (2, 1024, 128)


def test_where_the_audio_sits(processor):
    decode = processor.tokenizer.decode

    def shape(text, audio):
        ids = processor(text=text, audio=audio)["input_ids"]
        return decode(ids).replace("<|audio|>" * 64, "[A]")

    template = "### Instruction:\n{}\n\n### Response:\n"
    assert shape("Hi", clip()) == "[A]" + template.format("Hi")
    assert shape("<|audio|>Hi", clip()) == "[A]" + template.format("Hi")
    assert shape(" <|audio|>\n Hi {x}", clip()) == "[A]" + template.format("Hi {x}")
    assert shape("Is <|audio|> rain?", clip()) == template.format("Is [A] rain?")
    assert shape("Compare", [clip(), clip()]) == "[A][A]" + template.format("Compare")
    assert shape("<|audio|><|audio|>Compare", [clip(), clip()]) == "[A][A]" + template.format("Compare")
    assert shape("<|audio|>Is it <|audio|>?", [[clip(), clip()]]) == "[A]" + template.format("Is it [A]?")
    assert shape("Hi", None) == template.format("Hi")


def test_clips_go_to_their_texts_in_order(processor):
    sounds = [clip(frequency=frequency) for frequency in (300.0, 600.0, 1200.0)]
    first, second, third = (features_of(sound["array"])[0] for sound in sounds)

    def order(text, audio):
        output = processor(text=text, audio=audio, return_tensors="pt")
        slots = (output["input_ids"] == AUDIO).sum(dim=1) // 64
        return slots.tolist(), output["input_features"]

    slots, features = order(["a", "b", "c"], sounds)
    assert slots == [1, 1, 1] and torch.equal(features, torch.stack([first, second, third]))
    for audio in ([[sounds[0], sounds[1]], None, [sounds[2]]], [[sounds[0], sounds[1]], [], sounds[2]]):
        slots, features = order(["a", "b", "c"], audio)
        assert slots == [2, 0, 1] and torch.equal(features, torch.stack([first, second, third]))
    slots, features = order(["<|audio|>a<|audio|>", "b", "<|audio|>c"], sounds)  # a flat list, by the marks
    assert slots == [2, 0, 1] and torch.equal(features, torch.stack([first, second, third]))
    slots, features = order(["a", "b"], [None, sounds[1]])
    assert slots == [0, 1] and torch.equal(features, second[None])
    slots, features = order(["<|audio|>a", "b"], sounds[:2])
    assert slots == [1, 1] and torch.equal(features, torch.stack([first, second]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "<|audio|>Hi"}, "0 clips for 1"),
        ({"text": ["<|audio|>Hi", "a"], "audio": [None, None]}, "0 clips for 1"),
        ({"text": "<|audio|>Hi", "audio": [clip(), clip()]}, "2 clips for 1"),
        ({"text": ["a", "b"], "audio": clip()}, "clips for 1 texts, expected 2"),
        ({"text": ["a", "b"], "audio": [clip()] * 3}, "3 clips for 2 texts"),
        ({"text": ["a", "b"], "audio": [[clip()]]}, "clips for 1 texts, expected 2"),
        ({"text": ["<|audio|><|audio|>a", "b"], "audio": [[clip()], [clip()]]}, "1 clips for 2"),
        ({"text": "a", "audio": tone()}, "sampling_rate: got None"),
        ({"text": "a", "audio": clip(), "answer": ["x", "y"]}, "answer: got 2 for 1 texts"),
        ({"text": "a", "answer": "<|audio|>"}, "answer: got the special token <|audio|> in '<|audio|>' at position 0"),
        ({"text": "a", "answer": 3}, "answer: got 3"),
        ({"text": ["a", None]}, "text: got None at position 1"),
        ({"text": []}, "text: got \\[\\]"),
        ({}, "text: got None"),
        ({"answer": "x", "audio": clip()}, "text: got None"),
        ({"text": "a", "audio": clip(), "overflow": "cut"}, "overflow: got 'cut'"),
        ({"text": "a", "overflow": "cut"}, "overflow: got 'cut'"),
        ({"text": "a", "audio": clip(11.0)}, "overflow: a clip of 11.00 s"),
        ({"text": "a", "return_tensors": "jax"}, "return_tensors: got 'jax'"),
    ],
)
def test_wrong_calls(processor, arguments, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        processor(**arguments)


def test_unknown_arguments(processor):
    with pytest.raises(TypeError, match="max_length, truncation"):
        processor(text="a", truncation=True, max_length=3)
    with pytest.raises(TypeError, match="images"):
        processor(text="a", images=[1])


def test_overflow_windows_and_truncation(processor, monkeypatch):
    messages = []
    monkeypatch.setattr(audio_sam.logger, "warning", messages.append)
    long = clip(25.0)
    output = processor(
        text=["a", "b", "c"],
        audio=[long, clip(), None],
        overflow="window",
        return_tensors="pt",
        answer=["x", "y", "z"],
    )
    assert output["num_windows"].tolist() == [3, 1, 1]
    assert output["input_ids"].shape[0] == output["labels"].shape[0] == 5
    assert output["input_features"].shape[0] == 4
    assert torch.equal(output["input_ids"][0], output["input_ids"][2])
    assert torch.equal(output["input_features"][3], features_of(tone())[0])
    assert torch.equal(output["input_features"][1], features_of(long["array"][163840 : 163840 + 164080])[0])
    single = processor(text="a", audio=long, overflow="window")
    assert single["num_windows"] == [3] and len(single["input_ids"]) == 3
    with pytest.raises(ValueError, match="several clips"):
        processor(text="a", audio=[long, clip()], overflow="window")
    assert messages == []
    output = processor(text=["a", "b"], audio=[long, clip()], overflow="truncate", return_tensors="pt")
    assert output["input_features"].shape[0] == 2 and "num_windows" not in output
    assert len(messages) == 1 and "1 of 2" in messages[0]


# -- Construction, saving, chats ----------------------------------------------------------------------------------


def test_construction_errors():
    no_end = tiny_tokenizer()
    no_end.eos_token = None
    with pytest.raises(ValueError, match="tokenizer: got one without an end-of-text token"):
        SamProcessor(SamFeatureExtractor(), no_end)
    with pytest.raises(ValueError, match="connector"):
        SamProcessor(SamFeatureExtractor(), tiny_tokenizer(), connector="both")
    from tokenizers import Tokenizer, models, pre_tokenizers

    bare = Tokenizer(models.BPE(vocab={"<|endoftext|>": 0, "&": 1, "a": 2}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|endoftext|>")
    with pytest.raises(ValueError, match="'&&' is not one token"):
        SamProcessor(SamFeatureExtractor(), bare, connector="time_major")
    processor = SamProcessor(SamFeatureExtractor(), bare)  # (a) has no separators
    assert processor.separator_token_id is None and processor.audio_token_id == 3


def test_what_batches_need_is_saved(tmp_path):
    """As transformers' pipelines ask for: a padding token, and padding on the left that both parts agree upon."""
    tokenizer, extractor = tiny_tokenizer(), SamFeatureExtractor(padding_side="right")
    assert tokenizer.pad_token is None and tokenizer.padding_side == "right"
    processor = SamProcessor(extractor, tokenizer)
    processor.save_pretrained(tmp_path)
    tokenizers = [
        tokenizer,
        AutoTokenizer.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path).tokenizer,
    ]
    for each in tokenizers:
        assert (each.pad_token, each.pad_token_id, each.padding_side) == ("<|endoftext|>", END, "left")
        assert each.chat_template == processor.chat_template
        padded = each(["a", "bcd"], padding=True)
        assert padded["attention_mask"] == [[0, 0, 1], [1, 1, 1]]
    assert extractor.padding_side == AutoFeatureExtractor.from_pretrained(tmp_path).padding_side == "left"
    trained = processor(text=["a", "bcd"], answer=["x", "y"], return_tensors="pt")
    assert trained["attention_mask"][0].tolist() == sorted(trained["attention_mask"][0].tolist(), reverse=True)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "&&"  # one's own is kept
    assert SamProcessor(SamFeatureExtractor(), tokenizer).tokenizer.pad_token_id == SEPARATOR


def test_the_audio_token_is_added_once():
    without = tiny_tokenizer(audio_token=False)
    assert SamProcessor(SamFeatureExtractor(), without).audio_token_id == 258
    assert SamProcessor(SamFeatureExtractor(), without).audio_token_id == 258 and len(without) == 259
    ids = without("x<|audio|>y")["input_ids"]
    assert ids[1] == 258 and without.decode(ids, skip_special_tokens=True) == "xy"


def test_smaller_encoders():
    extractor = SamFeatureExtractor(feature_size=32, max_frames=128)
    processor = SamProcessor(extractor, tiny_tokenizer(), connector="frequency_major")
    output = processor(text="Hi", audio=clip(), return_tensors="pt")
    assert output["input_features"].shape == (1, 128, 32)
    assert output["input_ids"][0, :18].tolist() == ([AUDIO] * 8 + [SEPARATOR]) * 2


@pytest.mark.parametrize("audio_token", [True, False])
def test_save_and_load(tmp_path, audio_token):
    extractor = SamFeatureExtractor(max_frames=512, std=4.0)
    processor = SamProcessor(extractor, tiny_tokenizer(audio_token), connector="time_major")
    processor.save_pretrained(tmp_path)
    assert {"processor_config.json", "processing_sam.py", "configuration_sam.py", "chat_template.jinja"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path)) is SamFeatureExtractor
    expected = processor(text=["Hi", "a && b"], audio=[clip(), None], answer=["x", "y"], return_tensors="pt")
    for loaded in (AutoProcessor.from_pretrained(tmp_path), SamProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is SamProcessor and type(loaded).__name__ == "SamAudioLanguageProcessor"
        assert loaded.connector == "time_major" and loaded.chat_template == processor.chat_template
        assert loaded.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
        output = loaded(text=["Hi", "a && b"], audio=[clip(), None], answer=["x", "y"], return_tensors="pt")
        assert set(output) == set(expected) and all(torch.equal(output[key], expected[key]) for key in expected)
        loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "processor_config.json").read_text() == (
        tmp_path / "processor_config.json"
    ).read_text()


@pytest.mark.slow
def test_loads_by_remote_code(tmp_path):
    SamProcessor(SamFeatureExtractor(), tiny_tokenizer(), connector="frequency_major").save_pretrained(
        tmp_path / "sam"
    )
    program = (
        "import sys; from transformers import AutoFeatureExtractor, AutoProcessor\n"
        "p = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "f = AutoFeatureExtractor.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "assert type(p).__module__.startswith('transformers_modules.'), type(p)\n"
        "assert 'processing_sam' not in sys.modules\n"
        "p.save_pretrained(sys.argv[1] + '2')\n"
        "print(type(p).__name__, p.connector, type(f).__name__, len(p(text='Hi', audio=sys.argv[2])['input_ids']))\n"
    )
    soundfile.write(tmp_path / "a.wav", tone(), 16000)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment |= {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program, str(tmp_path / "sam"), str(tmp_path / "a.wav")]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-4:] == [
        "SamAudioLanguageProcessor",
        "frequency_major",
        "SamFeatureExtractor",
        str(520 + len("### Instruction:\nHi\n\n### Response:\n")),
    ]
    assert (tmp_path / "sam2" / "processing_sam.py").exists() and (tmp_path / "sam2" / "configuration_sam.py").exists()


def test_chat_template(processor, tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(), 16000, subtype="FLOAT")
    question = {"type": "text", "text": "What is it?"}
    expected = processor(text="What is it?", audio=clip(), return_tensors="pt")
    for item in (
        {"type": "audio", "audio": str(tmp_path / "a.wav")},
        {"type": "audio", "path": str(tmp_path / "a.wav")},
        {"type": "audio", "audio": tone(), "sampling_rate": 16000},
        {"type": "audio", "audio": clip()},
    ):
        for content in ([item, question], [question, item]):
            output = processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
            )
            assert set(output) == set(expected) and all(torch.equal(output[key], expected[key]) for key in expected)
    text_only = [{"role": "user", "content": "What is it?"}]
    rendered = "### Instruction:\nWhat is it?\n\n### Response:\n"
    assert processor.apply_chat_template(text_only, add_generation_prompt=True) == rendered
    chat = [{"role": "user", "content": [{"type": "audio", "path": "any"}, question]}]
    assert processor.apply_chat_template(chat) == "<|audio|>" + rendered
    chats = [[{"role": "user", "content": [item, question]}], text_only]
    batch = processor.apply_chat_template(chats, tokenize=True, return_dict=True, return_tensors="pt")
    assert (batch["input_ids"] == AUDIO).sum(dim=1).tolist() == [64, 0]
    assert chats[0][0]["content"][0] is item  # left as it was
    options = {"answer": "a dog", "padding_side": "right"}
    for arguments in (options, {"processor_kwargs": options}):
        trained = processor.apply_chat_template(
            [{"role": "user", "content": [item, question]}], tokenize=True, return_dict=True, **arguments
        )
        assert trained["labels"] == processor(text="What is it?", audio=clip(), answer="a dog")["labels"]
    given = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "audio", "audio": tone(1.0, 48000)}, question]}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"sampling_rate": 48000},
    )
    torch.testing.assert_close(
        given["input_features"][0, 2:90, :20], expected["input_features"][0, 2:90, :20], atol=0.02, rtol=0
    )


def test_chats_that_are_refused(processor):
    question = {"type": "text", "text": "What is it?"}
    options = {"tokenize": True, "return_dict": True}
    for item, message in (
        ({"type": "audio", "audio": tone()}, "sampling_rate: got None"),
        ({"type": "audio", "url": "https://example.org/a.wav"}, r"got the URL .* download it first"),
        ({"type": "audio"}, "expected 'audio'"),
    ):
        with pytest.raises(ValueError, match=message):
            processor.apply_chat_template([{"role": "user", "content": [item, question]}], **options)


def test_decode(processor):
    ids = processor(text="Hi", answer="a dog")["input_ids"]
    assert processor.decode(ids, skip_special_tokens=True).endswith("### Response:\na dog")
    assert processor.batch_decode([ids[-6:]], skip_special_tokens=True) == ["a dog"]


def test_fetch_audio_for_pipelines(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(), 16000, subtype="FLOAT")
    fetched = SamFeatureExtractor().fetch_audio([str(tmp_path / "a.wav")])
    np.testing.assert_array_equal(load_audio(fetched[0]), tone())
    with pytest.raises(ValueError, match=r"got the URL .* download it first"):
        SamFeatureExtractor().fetch_audio("https://example.org/a.wav")


# -- Batches ------------------------------------------------------------------------------------------------------


ROWS = [
    {"audio": clip(), "prompt": "What is it?", "answer": "a dog"},
    {"audio": None, "prompt": "Say x.", "answer": "x"},
    {
        "audio": [clip(frequency=700.0), clip(frequency=900.0)],
        "prompt": "Compare <|audio|> with <|audio|>",
        "answer": "?",
    },
]


def test_collator_of_raw_rows_equals_the_processor(processor):
    expected = processor(
        text=[row["prompt"] for row in ROWS],
        audio=[row["audio"] for row in ROWS],
        answer=[row["answer"] for row in ROWS],
        return_tensors="pt",
    )
    batch = SamDataCollator(processor)(ROWS)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "input_features"}
    assert all(torch.equal(batch[key], expected[key]) for key in expected)
    assert batch["attention_mask"][1, 0] == 1 and batch["attention_mask"][1, -1] == 0
    renamed = [{"sound": row["audio"], "q": row["prompt"], "a": row["answer"], "id": 3} for row in ROWS]
    collator = SamDataCollator(processor, "sound", "q", "a", pad_to_multiple_of=16, train_on_prompt=True)
    batch = collator(renamed)
    assert batch["input_ids"].shape[1] % 16 == 0 and "input_features" in batch
    assert (batch["labels"] != -100).sum() > 100 and not (batch["labels"] == AUDIO).any()
    assert set(SamDataCollator(processor)([ROWS[1]])) == {"input_ids", "attention_mask", "labels"}


@pytest.mark.parametrize("form", ["lists", "pt", "padded", "squeezed", "stored"])
def test_collator_of_processed_rows(processor, form):
    expected = SamDataCollator(processor)(ROWS)
    rows = []
    for row in ROWS:
        kind = {"pt": "pt", "padded": "np"}.get(form)
        options = {"pad_to_multiple_of": 512, "padding_side": "left"} if form == "padded" else {}
        audio = [row["audio"]] if isinstance(row["audio"], list) else row["audio"]
        call = {"text": row["prompt"], "audio": audio, "answer": row["answer"], "return_tensors": kind}
        features = dict(processor(**call, **options))
        if form == "squeezed" and len(features.get("input_features", [])) == 1:
            features["input_features"] = features["input_features"][0]
        if form == "stored":  # as returned by datasets
            features["input_features"] = [array.tolist() for array in features.get("input_features", [])]
        rows.append(features)
    batch = SamDataCollator(processor)(rows)
    assert set(batch) == set(expected)
    assert all(torch.equal(batch[key], expected[key]) for key in expected)


def test_collator_after_datasets_map(processor, tmp_path):
    import datasets

    for name, frequency in (("a", 300.0), ("b", 800.0)):
        soundfile.write(tmp_path / f"{name}.wav", tone(frequency=frequency), 16000, subtype="FLOAT")
    data = datasets.Dataset.from_dict(
        {"audio": [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")], "prompt": ["p", "q?"], "answer": ["x", "yz"]}
    ).cast_column("audio", datasets.Audio(decode=False))
    raw = SamDataCollator(processor)([data[0], data[1]])
    mapped = data.map(
        lambda row: dict(processor(text=row["prompt"], audio=row["audio"], answer=row["answer"])),
        remove_columns=data.column_names,
    )
    batched = data.map(
        lambda rows: dict(processor(text=rows["prompt"], audio=rows["audio"], answer=rows["answer"])),
        batched=True,
        remove_columns=data.column_names,
    )
    assert set(mapped.column_names) == {"input_ids", "attention_mask", "labels", "input_features"}
    for processed in (mapped, batched, mapped.with_format("torch")):
        batch = SamDataCollator(processor)([processed[0], processed[1]])
        assert all(torch.equal(batch[key], raw[key]) for key in raw)
    whole = processor(text=data["prompt"], audio=data["audio"], answer=data["answer"], return_tensors="pt")
    assert all(torch.equal(whole[key], raw[key]) for key in raw)


def test_collator_counts_truncated_clips(processor, monkeypatch):
    messages = []
    monkeypatch.setattr(collator_sam.logger, "warning", messages.append)
    collator = SamDataCollator(processor)
    rows = [{"audio": clip(seconds), "prompt": "p", "answer": "a"} for seconds in (11.0, 1.0, 12.0)]
    assert collator.num_truncated == 0
    assert collator(rows)["input_features"].shape == (3, 1024, 128)
    collator(rows[:2])
    assert collator.num_truncated == 3 and len(messages) == 1
    with pytest.raises(ValueError, match=r"overflow: a clip of 11.00 s"):
        SamDataCollator(processor, overflow="error")(rows)
    with pytest.raises(ValueError, match="overflow: got 'window'"):
        SamDataCollator(processor, overflow="window")


def test_collator_counts_in_workers(processor):
    rows = [{"audio": clip(11.0 if index % 2 else 1.0), "prompt": "p", "answer": "a"} for index in range(8)]
    collator = SamDataCollator(processor)
    loader = torch.utils.data.DataLoader(rows, batch_size=2, num_workers=2, collate_fn=collator)
    assert sum(len(batch["input_features"]) for batch in loader) == 8
    assert collator.num_truncated == 4


def test_collator_errors(processor):
    collator = SamDataCollator(processor)
    for rows in ([{}], [{"label": 1}], [{"prompt": "p", "answer": "a"}]):
        with pytest.raises(ValueError, match=r"expected also 'audio'.*remove_unused_columns=False"):
            collator(rows)
    with pytest.raises(ValueError, match=r"rows: got the columns \['audio', 'prompt'\], expected also 'answer'"):
        collator([{"audio": clip(), "prompt": "p"}])
    with pytest.raises(ValueError, match="prompt: got None at position 1"):
        collator([ROWS[0], {**ROWS[1], "prompt": None}])
    processed = dict(processor(text="Hi", audio=clip(), answer="x"))
    with pytest.raises(ValueError, match=r"0 clips for 64 audio slots.*remove_unused_columns"):
        collator([{key: value for key, value in processed.items() if key != "input_features"}])
    with pytest.raises(ValueError, match=r"shape \(1024, 64\)"):
        collator([{**processed, "input_features": np.zeros((1024, 64), np.float32)}])
    with pytest.raises(ValueError, match="labels: got rows with and without them"):
        collator([processed, {**processed, "labels": None}])
    unlabelled = {key: value for key, value in processed.items() if key != "labels"}
    assert "labels" not in collator([unlabelled, unlabelled])


@needs(SOUNDS)
def test_real_clips_through_the_processor(processor):
    with open(SOUNDS / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))[::500]
    paths = [SOUNDS / row["file"] for row in rows]
    output = processor(text=["What is it?"] * len(paths), audio=paths, return_tensors="pt", overflow="truncate")
    assert output["input_features"].shape == (len(paths), 1024, 128) and output["input_features"].isfinite().all()
    for path, row, features in zip(paths, rows, output["input_features"]):
        frames = min(1024, 1 + (round(float(row["duration_s"]) * 16000) - 400) // 160)
        filled = ((features - 0.46706).abs() < 1e-4).all(dim=1)
        assert abs(int((~filled).sum()) - frames) <= 3, path
