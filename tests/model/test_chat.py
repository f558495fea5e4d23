"""Chats: the text and tokens of the template, its twin in every renderer, what is refused, and how clips are given."""

import base64
import io
import json
import re
from pathlib import Path
from urllib.parse import quote

import jinja2
import numpy as np
import pytest
import soundfile
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tiny import tiny_model, tiny_processor, tone
from transformers import AutoProcessor, AutoTokenizer

import chat_sam
import processing_sam
from audio_sam import load_audio
from chat_sam import CHAT_TEMPLATE, is_rendered
from processing_sam import SamDataCollator, SamProcessor

ROOT = Path(__file__).resolve().parents[2]
AUDIO, END = 258, 0
WRAPPED = "### Instruction:\n{}\n\n### Response:\n"
# Of the checkpoints that were saved before the template held the prompt.
OLD_TEMPLATE = (
    "{%- if messages | length != 1 or messages[0]['role'] != 'user' -%}"
    "{{ raise_exception('SAM answers one question at a time: expected one message of the role user, got '"
    " ~ (messages | map(attribute='role') | join(', ')) ~ '.') }}"
    "{%- endif -%}"
    "{%- set content = messages[0]['content'] -%}"
    "{%- if content is string -%}{{ content }}{%- else -%}"
    "{%- for item in content if item['type'] == 'audio' -%}<|audio|>{%- endfor -%}"
    "{%- for item in content if item['type'] == 'text' -%}{{ item['text'] }}{%- endfor -%}"
    "{%- endif -%}"
)
QUESTION = {"type": "text", "text": "What is it?"}
BARE = {"type": "audio"}


def text(content):
    return {"type": "text", "text": content}


def clip(frequency=440.0):
    return {"type": "audio", "audio": tone(0.5, frequency=frequency), "sampling_rate": 16000}


def user(*content):
    return {"role": "user", "content": list(content)}


def file_bytes(form="WAV", **options):
    file = io.BytesIO()
    soundfile.write(file, tone(0.5), 16000, format=form, **options)
    return file.getvalue()


def encoded(content):
    return base64.b64encode(content).decode()


class Generation(jinja2.ext.Extension):
    """`{% generation %}` as a server has it, which renders its content and no more."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def server(messages, trim=True, **variables):
    """The template as a server renders it that has only the file."""

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=trim, lstrip_blocks=trim, extensions=[Generation])
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(CHAT_TEMPLATE).render(messages=messages, **variables)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def renderings(processor, chat, **options):
    """The text of one chat by everything that renders it."""
    yield processor.apply_chat_template(chat, **options)
    yield processor.tokenizer.apply_chat_template(chat, tokenize=False, **options)
    for trim in (True, False):
        yield server(chat, trim, **options)
        yield server(chat, trim, eos_token="<|endoftext|>", tools=None, documents=None, **options)


# -- The text -----------------------------------------------------------------------------------------------------


FIRST_TURNS = {
    "a string": ("What is it?", WRAPPED.format("What is it?")),
    "a clip": ([BARE, QUESTION], "<|audio|>" + WRAPPED.format("What is it?")),
    "a clip behind": ([QUESTION, BARE], "<|audio|>" + WRAPPED.format("What is it?")),
    "two clips": ([BARE, QUESTION, BARE], "<|audio|>" * 2 + WRAPPED.format("What is it?")),
    "a clip within": ([text("Is "), BARE, text(" rain?")], WRAPPED.format("Is <|audio|> rain?")),
    "clips within and behind": ([text("Is "), BARE, text(" as "), BARE], WRAPPED.format("Is <|audio|> as <|audio|>")),
    "clips before and within": (
        [BARE, text("Is it "), BARE, text("?")],
        "<|audio|>" + WRAPPED.format("Is it <|audio|>?"),
    ),
    "a blank text is no text": ([QUESTION, BARE, text("\n")], "<|audio|>" + WRAPPED.format("What is it?\n")),
    "texts are joined": ([text("What "), text("is it?"), BARE], "<|audio|>" + WRAPPED.format("What is it?")),
    "space after a clip": ([BARE, text(" \nHi ")], "<|audio|>" + WRAPPED.format("Hi ")),
    "space without a clip": (" Hi {x}", WRAPPED.format(" Hi {x}")),
    "marks in a string": (" <|audio|>\n<|audio|> Hi", "<|audio|>" * 2 + WRAPPED.format("Hi")),
    "a mark within a string": ("Is <|audio|> rain?", WRAPPED.format("Is <|audio|> rain?")),
    "a clip alone": ([BARE], "<|audio|>" + WRAPPED.format("")),
    "headings": ("What does ### Response: mean?", WRAPPED.format("What does ### Response: mean?")),
    "rendered already": (WRAPPED.format("Hi"), WRAPPED.format("Hi")),
    "empty keys": ([{**BARE, "text": None}, {**QUESTION, "audio": None}], "<|audio|>" + WRAPPED.format("What is it?")),
}


@pytest.mark.parametrize("case", FIRST_TURNS)
def test_the_first_turn(processor, case):
    content, expected = FIRST_TURNS[case]
    for options in ({}, {"add_generation_prompt": True}, {"add_generation_prompt": False}):
        found = set(renderings(processor, [{"role": "user", "content": content}], **options))
        assert found == {expected}


def test_turns(processor):
    chat = [
        {"role": "system", "content": "Be brief.\n"},
        user(BARE, text("What is it?")),
        {"role": "assistant", "content": [text("A "), text("dog.")]},
        user(text("And this?"), BARE),
        {"role": "assistant", "content": "Rain."},
        user(text("Is "), BARE, text(" louder?")),
    ]
    first = "<|audio|>Be brief.\n\n" + WRAPPED.format("What is it?")
    second = "A dog.<|endoftext|><|audio|>" + WRAPPED.format("And this?")
    third = "Rain.<|endoftext|>" + WRAPPED.format("Is <|audio|> louder?")
    assert set(renderings(processor, chat, add_generation_prompt=True)) == {first + second + third}
    assert set(renderings(processor, chat[:2])) == {first}
    # what trainers of chats rely on: the prompt is the beginning of the prompt with its answer
    assert set(renderings(processor, chat[:5])) == {first + second + "Rain.<|endoftext|>"}
    assert set(renderings(processor, [{"role": "system", "content": ""}, *chat[3:4]])) == {
        "<|audio|>" + WRAPPED.format("And this?")
    }


def test_an_answer_is_continued(processor):
    for answer in ("A dog", [text("A "), text("dog")]):
        chat = [user(clip(), QUESTION), {"role": "assistant", "content": answer}]
        expected = "<|audio|>" + WRAPPED.format("What is it?") + "A dog"
        assert processor.apply_chat_template(chat, continue_final_message=True) == expected
        given = processor.apply_chat_template(chat, continue_final_message=True, tokenize=True, return_dict=True)
        assert given["input_ids"] == [AUDIO] * 64 + processor.tokenizer(expected[9:])["input_ids"]
        kind = [{"role": "system", "content": "Be kind."}, *chat]
        given = processor.apply_chat_template(kind, continue_final_message=True, tokenize=True, return_dict=True)
        rest = "Be kind.\n\n" + expected[9:]
        assert given["input_ids"] == [AUDIO] * 64 + processor.tokenizer(rest)["input_ids"]


def test_a_server_that_renders_and_tokenises_sends_what_the_processor_does(processor):
    chat = [user(clip(), QUESTION), {"role": "assistant", "content": "A dog."}, user(text("Ünd? "), clip(900.0))]
    ids = processor.tokenizer(server(chat, add_generation_prompt=True))["input_ids"]
    assert ids.count(AUDIO) == 2
    expanded = [token for one in ids for token in [one] * (64 if one == AUDIO else 1)]
    ours = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert ours["input_ids"] == expanded
    one = processor.apply_chat_template(chat[:1], tokenize=True, return_dict=True)["input_ids"]
    assert one == processor(text="What is it?", audio=clip()["audio"], sampling_rate=16000)["input_ids"]


# -- Texts that are rendered already ------------------------------------------------------------------------------


def test_a_rendered_text_is_not_wrapped_again(processor):
    chat = [
        user(clip(), QUESTION),
        {"role": "assistant", "content": "A dog."},
        user(text("And "), clip(900.0), text("?")),
    ]
    kind = [{"role": "system", "content": "Be kind."}, *chat]
    for messages, clips in ((chat[:1], 1), (chat, 2), (kind[:2], 1), (kind, 2)):
        expected = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        audio = [item["audio"] for message in messages for item in message["content"] if "audio" in item]
        assert len(audio) == clips
        rendered = processor.apply_chat_template(messages)
        found = processor(text=rendered, audio=audio, sampling_rate=16000, return_tensors="pt")
        assert set(found) == set(expected) and all(torch.equal(found[key], expected[key]) for key in expected)
        row = {"audio": [{"array": each, "sampling_rate": 16000} for each in audio], "prompt": rendered, "answer": "x"}
        batch = SamDataCollator(processor)([row])["input_ids"][0].tolist()
        assert batch == expected["input_ids"][0].tolist() + processor.tokenizer("x")["input_ids"] + [END]
    # clips without marks come first, as those of a question do; space around marks does not count
    plain = processor(text="Hi", audio=clip()["audio"], sampling_rate=16000)["input_ids"]
    for each in (WRAPPED.format("Hi"), "<|audio|>" + WRAPPED.format("Hi"), " <|audio|>\n" + WRAPPED.format("Hi")):
        assert processor(text=each, audio=clip()["audio"], sampling_rate=16000)["input_ids"] == plain


@pytest.mark.parametrize(
    "question",
    [
        "What does '### Response:' mean?",
        "### Response:\nWhat?",
        "### Instruction:\nWhat is it?",
        "Say ### Instruction:\nx\n\n### Response:\n",
        "Answer.\n\n### Response:\n",
        "Answer.\n\n### Input:\nrain\n\n### Response:\n",
        "### Instructions\nHi\n\n### Response:\n",
    ],
)
def test_questions_that_mention_a_heading_are_questions(processor, question):
    expected = processor.tokenizer(WRAPPED.format(question))["input_ids"]
    assert not is_rendered(question) and processor(text=question)["input_ids"] == expected


@pytest.mark.parametrize(
    "almost",
    [
        "### Instruction:\nHi\n\n### Response:",  # the last newline
        "### Instruction:\nHi\n### Response:\n",
        "### Instruction: Hi\n\n### Response:\n",
        "\n### Instruction:\nHi\n\n### Response:\n",
        "### Instruction:\r\nHi\r\n\r\n### Response:\r\n",
        "Explain:\n\n### Instruction:\nHi\n\n### Response:\nYes?",  # a system message and an answer, or a question
    ],
)
def test_what_may_be_a_prompt_or_a_question_is_refused(processor, almost):
    with pytest.raises(ValueError, match=r"text: got .* pass rendered=True .* or rendered=False"):
        processor(text=almost)
    wrapped = processor.tokenizer(WRAPPED.format(almost))["input_ids"]
    assert processor(text=almost, rendered=False)["input_ids"] == wrapped
    assert processor(text=[almost], rendered=True)["input_ids"] == [processor.tokenizer(almost)["input_ids"]]


# -- Masks of answers ---------------------------------------------------------------------------------------------


def marked(output):
    rows = zip(
        *(np.asarray(output[key]).reshape(-1, np.shape(output[key])[-1]) for key in ("input_ids", "assistant_masks"))
    )
    return [ids[mask == 1].tolist() for ids, mask in rows]


def test_masks_of_answers_are_the_labels_of_the_training(processor):
    chat = [user(clip(), QUESTION), {"role": "assistant", "content": " Ä dog."}]
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    trained = processor(text="What is it?", audio=clip()["audio"], sampling_rate=16000, answer=" Ä dog.")
    single = processor.apply_chat_template(chat, **options)
    assert single["input_ids"] == trained["input_ids"]
    assert single["assistant_masks"] == [int(label != -100) for label in trained["labels"]]
    more = [*chat, user(text("And "), clip(900.0), text("?")), {"role": "assistant", "content": "Rain."}]
    batch = processor.apply_chat_template([chat, more], return_tensors="pt", **options)
    tokens = processor.tokenizer([" Ä dog.<|endoftext|>", "Rain.<|endoftext|>"])["input_ids"]
    assert marked(batch) == [tokens[0], tokens[0] + tokens[1]]
    assert batch["assistant_masks"].shape == batch["input_ids"].shape
    right = processor.apply_chat_template([chat, more], return_tensors="np", padding_side="right", **options)
    assert marked(right) == marked(batch) and isinstance(right["assistant_masks"], np.ndarray)
    asked = processor.apply_chat_template(chat[:1], **options)
    assert set(asked["assistant_masks"]) == {0} and len(asked["assistant_masks"]) == len(asked["input_ids"])
    alone = processor.tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    assert marked(alone) == [tokens[0]]
    for given in ({"answer": "x"}, {"overflow": "window"}, {"chat_template": OLD_TEMPLATE}):
        with pytest.raises(ValueError, match="return_assistant_tokens_mask: got True"):
            processor.apply_chat_template(chat[:1], **given, **options)


# -- Checkpoints that were saved before ---------------------------------------------------------------------------


def test_an_old_template_gives_the_same_tokens(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(OLD_TEMPLATE)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for name in ("pad_token", "padding_side"):
        del config[name]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    settings = (tmp_path / "processor_config.json").read_text()
    (tmp_path / "processor_config.json").write_text(
        settings.replace('"padding_side": "left"', '"padding_side": "right"')
    )
    old = AutoProcessor.from_pretrained(tmp_path)
    assert old.chat_template == OLD_TEMPLATE
    assert (old.tokenizer.pad_token_id, old.tokenizer.padding_side, old.feature_extractor.padding_side) == (
        0,
        "left",
        "left",
    )
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    data = {"type": "input_audio", "input_audio": {"data": encoded(file_bytes()), "format": "wav"}}
    for content in (
        "What is it?",
        [clip(), QUESTION],
        [QUESTION, clip()],
        [clip(), text(" a"), clip(900.0)],
        [data, QUESTION],
    ):
        chat = [{"role": "user", "content": content}]
        ours, theirs = (each.apply_chat_template(chat, **options) for each in (processor, old))
        assert set(ours) == set(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert old.apply_chat_template([user(BARE, QUESTION)]) == "<|audio|>What is it?"
    with pytest.raises(ValueError, match=r"one question at a time.*user, assistant"):
        old.apply_chat_template([user(QUESTION), {"role": "assistant", "content": "x"}])
    with pytest.raises(ValueError, match="got the type 'sound'"):
        old.apply_chat_template([user({"type": "sound", "path": "a.wav"}, QUESTION)])
    old.chat_template = CHAT_TEMPLATE  # the way to renew a checkpoint
    old.save_pretrained(tmp_path / "new")
    assert AutoProcessor.from_pretrained(tmp_path / "new").chat_template == CHAT_TEMPLATE
    assert AutoTokenizer.from_pretrained(tmp_path / "new").chat_template == CHAT_TEMPLATE


def test_a_template_of_ones_own_is_wrapped(processor):
    own = "{{ messages[0]['content'] }} Please."
    found = processor.apply_chat_template([{"role": "user", "content": "Hi"}], own, tokenize=True, return_dict=True)
    assert processor.decode(found["input_ids"]) == WRAPPED.format("Hi Please.")


def test_the_small_checkpoint_has_the_template():
    folder = ROOT / "examples" / "sam-tiny"
    assert (folder / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("<|endoftext|>", "left")
    assert SamProcessor.from_pretrained(folder).feature_extractor.padding_side == "left"
    found = tokenizer.apply_chat_template([user(BARE, QUESTION)], tokenize=False)
    assert found == "<|audio|>" + WRAPPED.format("What is it?")


# -- How clips are given ------------------------------------------------------------------------------------------


def test_all_items_of_audio_are_read(processor, tmp_path):
    (tmp_path / "a.wav").write_bytes(file_bytes(subtype="FLOAT"))
    path, data = str(tmp_path / "a.wav"), encoded(file_bytes(subtype="FLOAT"))
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    expected = processor(text="What is it?", audio=path, return_tensors="pt")
    url = f"data:audio/wav;base64,{data}"
    lines = "\n".join(re.findall(".{1,76}", data))
    for item in (
        {"type": "audio", "audio": path},
        {"type": "audio", "path": tmp_path / "a.wav"},
        {"type": "audio", "url": path},
        {"type": "audio", "path": path, "audio": None},
        {"type": "audio", "audio": (tmp_path / "a.wav").read_bytes()},
        {"type": "audio", "audio": tone(0.5), "sampling_rate": 16000},
        {"type": "audio", "audio": url},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": lines, "format": "WAV"}},
        {"type": "audio_url", "audio_url": {"url": url}},
        {"type": "audio_url", "audio_url": url},
        {"type": "audio_url", "audio_url": {"url": url.replace("wav;", "x-wav;codecs=1;")}},
        {"type": "audio_url", "audio_url": {"url": path}},
    ):
        found = processor.apply_chat_template([user(item, QUESTION)], **options)
        assert set(found) == set(expected) and all(torch.equal(found[key], expected[key]) for key in expected)
        assert processor.apply_chat_template([user(item, QUESTION)]).startswith("<|audio|>###")


@pytest.mark.parametrize(
    ("form", "name"), [("FLAC", "flac"), ("OGG", "ogg"), ("MP3", "mp3"), ("AIFF", "aiff"), ("WAVEX", "wav")]
)
def test_the_format_of_input_audio(processor, form, name):
    content = file_bytes(form)
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    item = {"type": "input_audio", "input_audio": {"data": encoded(content), "format": name}}
    found = processor.apply_chat_template([user(item, QUESTION)], **options)
    expected = processor(audio=content, return_tensors="pt")["input_features"]
    assert torch.equal(found["input_features"], expected)
    item["input_audio"]["format"] = "m4a"
    with pytest.raises(ValueError, match=rf"item 0 \(input_audio\): got the format 'm4a', but the data are {name}"):
        processor.apply_chat_template([user(item, QUESTION)], **options)


@pytest.mark.parametrize(
    "change",
    [
        lambda url: "\n" + url.replace("data:audio/wav;base64", "DATA:Audio/WAV; codecs=1; Base64"),
        lambda url: url.rstrip("="),
        lambda url: url.split(",")[0] + "," + quote(url.split(",")[1], safe=""),
        lambda url: url.replace(",", ",\r\n "),
    ],
)
def test_data_urls_are_read_alike_everywhere(processor, change):
    content = file_bytes(subtype="FLOAT")
    url = f"data:audio/wav;base64,{encoded(content)}"
    assert url.endswith("=") and change(url) != url
    expected = load_audio(content)
    assert np.array_equal(load_audio(change(url)), expected)
    features = processor(audio=content, return_tensors="pt")["input_features"]
    for item in ({"type": "audio", "url": change(url)}, {"type": "audio_url", "audio_url": {"url": change(url)}}):
        found = processor.apply_chat_template([user(item, QUESTION)], tokenize=True, return_dict=True)
        assert np.array_equal(found["input_features"], features)


def test_clips_of_turns_and_batches_stay_in_order(processor):
    first, second, third = (clip(frequency) for frequency in (300.0, 600.0, 1200.0))
    chat = [
        user(text("Is "), first, text(" or"), second),
        {"role": "assistant", "content": "b"},
        user(text("c"), third),
    ]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    alone = [
        processor(audio=each["audio"], sampling_rate=16000, return_tensors="pt")["input_features"][0]
        for each in (first, second, third)
    ]
    found = processor.apply_chat_template(chat, **options)
    assert torch.equal(found["input_features"], torch.stack(alone))
    batch = processor.apply_chat_template([chat[2:], [user(text("none"))], chat], **options)
    assert torch.equal(batch["input_features"], torch.stack([alone[2], *alone]))
    assert ((batch["input_ids"] == AUDIO).sum(dim=1) // 64).tolist() == [1, 0, 3]
    assert chat[0]["content"][1] is first  # left as it was


def test_a_conversation_is_answered(processor):
    """A turn goes on from the state that the turns before left."""
    model = tiny_model()
    chat = [user(clip(), QUESTION)]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template(chat, **options)
    settings = {
        "max_new_tokens": 5,
        "suppress_tokens": [END, *range(95, 272)],
        "return_dict_in_generate": True,
    }
    done = model.generate(**inputs, **settings)
    answer = processor.decode(done.sequences[0, inputs["input_ids"].shape[1] :])
    chat += [{"role": "assistant", "content": answer}, user(text("Sure?"))]
    whole = processor.apply_chat_template(chat, **options)
    assert whole["input_ids"][0, : done.sequences.shape[1]].tolist() == done.sequences[0].tolist()
    del whole["attention_mask"]
    again = model.generate(**whole, **settings).sequences
    rest = model.generate(whole["input_ids"], cache=done.past_key_values, **settings).sequences
    assert torch.equal(rest, again)


# -- Refused ------------------------------------------------------------------------------------------------------


def asked(item):
    return [user(item, QUESTION)]


REFUSED = {
    "an unknown role": ([{"role": "tool", "content": "x"}], "message 0: got the role '?tool'?, expected"),
    "no role": ([{"content": "x"}], "message 0: got the role "),
    "no content": ([{"role": "user"}], "message 0: got (None as|no) content"),
    "empty content": ([{"role": "user", "content": None}], "message 0: got (None as|no) content"),
    "a number": ([{"role": "user", "content": 3}], "message 0: got .*content.*string"),
    "a dictionary": ([{"role": "user", "content": QUESTION}], "message 0: got .*content.*string"),
    "no items": ([{"role": "user", "content": []}], "message 0: got .*list.* as content"),
    "an unknown key": ([{"role": "user", "content": "x", "name": "y"}], "message 0: got the unknown key '?name"),
    "a string as item": ([user("x")], "message 0, item 0: got"),
    "no type": (asked({"path": "a.wav"}), "message 0, item 0: got no type, expected .*input_audio"),
    "an empty type": (asked({"type": None, "path": "a.wav"}), "message 0, item 0: got no type"),
    "a type in capitals": (
        asked({"type": "Audio", "path": "a"}),
        "item 0: got the type '?Audio'?, expected .*audio_url",
    ),
    "another type": (asked({"type": "sound", "path": "a.wav"}), "item 0: got the type '?sound"),
    "an image": (asked({"type": "image", "url": "a.png"}), "item 0: got the type '?image"),
    "an image by its URL": (asked({"type": "image_url", "image_url": {"url": "a"}}), "item 0: got the type '?image"),
    "a list as type": (asked({"type": ["audio"]}), "item 0: got the type"),
    "an unknown key of an item": (asked({"type": "audio", "file": "a.wav"}), "item 0.*: got the unknown key '?file"),
    "a key of another type": (asked({"type": "audio", "audio_url": "a"}), "item 0.*: got the unknown key '?audio_url"),
    "a key too many": ([user(BARE, {**QUESTION, "x": 1})], "message 0, item 1.*: got the unknown key '?x"),
    "a text that is a number": ([user(text(3))], "item 0.*: got .*string"),
    "no text": ([user({"type": "text"})], "item 0.*: got .*string"),
    "two questions": ([user(QUESTION), user(QUESTION)], "message 1: got the role user after user"),
    "an answer first": ([{"role": "assistant", "content": "a"}], "message 0: got the role assistant after nothing"),
    "two answers": (
        [user(QUESTION), *[{"role": "assistant", "content": "a"}] * 2],
        "message 2: got the role assistant after assistant",
    ),
    "a late system message": ([user(QUESTION), {"role": "system", "content": "a"}], "message 1: got the role system"),
    "a system message alone": ([{"role": "system", "content": "a"}], "system message alone"),
    "a clip of the system": ([{"role": "system", "content": [clip()]}, user(QUESTION)], "message 0.*: got audio in"),
    "a clip as answer": (
        [user(QUESTION), {"role": "assistant", "content": [clip()]}],
        "message 1, item 0: got audio in",
    ),
    "a mark in an answer": (
        [user(QUESTION), {"role": "assistant", "content": "<|audio|>"}],
        "message 1: got <.audio.>",
    ),
    "an end in an answer": (
        [user(QUESTION), {"role": "assistant", "content": "a<|endoftext|>"}],
        "message 1: got <.endof",
    ),
    "an end in a question": ([user(text("a<|endoftext|>b"))], "message 0, item 0: got <.endoftext"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_template_does_not_know_is_refused_wherever_it_is_rendered(processor, case):
    chat, message = REFUSED[case]
    for options in ({}, {"tokenize": True, "return_dict": True}):
        with pytest.raises(ValueError, match=message):
            processor.apply_chat_template(chat, **options)
    for render in (server, lambda chat: processor.tokenizer.apply_chat_template(chat, tokenize=False)):
        with pytest.raises(jinja2.TemplateError, match=message):
            render(chat)


def test_other_chats_that_are_refused(processor):
    for chat, message in (
        ("Hi", "conversation: got 'Hi', expected a list of messages"),
        ({"role": "user", "content": "Hi"}, "conversation: got a dict"),
        ([], "conversation: got a list, expected"),
        (["Hi"], "message 0: got 'Hi', expected a dictionary"),
        ([[user(QUESTION)], []], "conversation 1: got a list"),
        ([[user(QUESTION)], [user({"type": "sound"})]], "conversation 1: message 0, item 0: got the type 'sound'"),
    ):
        with pytest.raises(ValueError, match=message):
            processor.apply_chat_template(chat)
    answered = [user(QUESTION), {"role": "assistant", "content": "x"}]
    for render in (processor.apply_chat_template, server):
        with pytest.raises(
            (ValueError, jinja2.TemplateError), match=r"add_generation_prompt: got .* continue_final_message"
        ):
            render(answered, add_generation_prompt=True)
        with pytest.raises((ValueError, jinja2.TemplateError), match="tools, documents: SAM reads neither"):
            render(answered, tools=[{"type": "function"}])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"type": "audio"}, r"item 0 \(audio\): got the keys \['type'\], expected 'audio'"),
        ({"type": "audio_url"}, "expected 'audio_url' with the clip"),
        ({"type": "audio", "audio": "a.wav", "path": "b.wav"}, "got 'audio' and 'path', expected one of them"),
        (
            {"type": "audio", "url": "https://example.org/a.wav"},
            "got the URL 'https://example.org/a.wav'.* download it",
        ),
        (
            {"type": "audio_url", "audio_url": {"url": "HTTP://example.org/a"}},
            r"item 0 \(audio_url\): audio: got the URL 'HTTP:",
        ),
        ({"type": "audio", "path": "file:///a.wav"}, "got the URL 'file:///a.wav'.* pass the file's path"),
        ({"type": "audio_url", "audio_url": "file:/a.wav"}, "got the URL 'file:/a.wav'"),
        ({"type": "audio_url", "audio_url": {"url": "a", "detail": "low"}}, "got a dict as 'audio_url'"),
        ({"type": "audio_url", "audio_url": 3}, "got 3 as 'audio_url'"),
        ({"type": "audio_url", "audio_url": "data:audio/wav;base64,a*b"}, "base64 of the URL .* cannot be decoded"),
        ({"type": "audio_url", "audio_url": "data:audio/wav;base64,"}, "a data: URL of 22 characters is empty"),
        ({"type": "audio_url", "audio_url": "data:text/plain;base64,AAAA"}, "expected 'data:audio/...;base64'"),
        ({"type": "audio", "url": "s3://bucket/a.wav"}, "got the URL 's3://bucket/a.wav'.* download it"),
        ({"type": "audio_url", "audio_url": " HTTPS://example.org/a.wav"}, "got the URL .* download it"),
        ({"type": "audio_url", "audio_url": "data:audio/wav;base64,AAAA"}, r"item 0 \(audio_url\): audio: "),
        ({"type": "input_audio", "input_audio": "UklGRg=="}, "'input_audio': got 'UklGRg==', expected a dictionary"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA"}}, "got None as 'format'"),
        ({"type": "input_audio", "input_audio": {"format": "wav"}}, "got None as 'data'"),
        ({"type": "input_audio", "input_audio": {"data": b"AAAA", "format": "wav"}}, "got a bytes as 'data'"),
        (
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav", "url": "x"}},
            "the unknown key 'url'",
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "pcm16"}},
            "got the format 'pcm16', expected",
        ),
        ({"type": "input_audio", "input_audio": {"data": "AAA", "format": "wav"}}, "not base64"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "the data are of no known format"),
    ],
)
def test_clips_that_are_refused_name_their_item(processor, item, message):
    chat = [user(QUESTION), {"role": "assistant", "content": "x"}, user(item, QUESTION)]
    with pytest.raises(ValueError, match=message) as caught:
        processor.apply_chat_template(chat, tokenize=True, return_dict=True)
    assert str(caught.value).startswith("conversation: message 2, item 0 (" + item["type"])


def test_the_template_knows_what_the_processor_knows():
    known = re.search(r"set known = (\{.*?\n\})", CHAT_TEMPLATE, re.DOTALL)[1]
    assert json.loads(known.replace("'", '"')) == {kind: list(keys) for kind, keys in chat_sam.ITEM_KEYS.items()}
    assert str(list(chat_sam.ROLES)) in CHAT_TEMPLATE


def test_vllm_sees_that_the_template_takes_items():
    """It looks for these two loops; without them it joins texts and marks to one string, marks first."""
    parsed = jinja2.Environment(extensions=[Generation]).parse(CHAT_TEMPLATE)
    loops = {ast.target.name: ast.iter for ast in parsed.find_all(jinja2.nodes.For)}
    assert loops["message"].name == "messages"
    assert (loops["item"].node.name, loops["item"].arg.value) == ("message", "content")


def test_clips_of_chats_are_read_as_those_of_plain_calls(processor, monkeypatch):
    """A file that breaks off is kept only where that is set, and of a long one no more is decoded than is used."""
    half = file_bytes()[: 44 + 8000]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    chat = [user({"type": "audio", "audio": half}, QUESTION)]
    with pytest.raises(ValueError, match=r"item 0 \(audio\): audio: .* breaks off after 0.25 s"):
        processor.apply_chat_template(chat, **options)
    monkeypatch.setattr(processor.feature_extractor, "incomplete", "keep")
    found = processor.apply_chat_template(chat, **options)
    plain = processor(text="What is it?", audio=half, return_tensors="pt")
    torch.testing.assert_close(found["input_features"], plain["input_features"])
    seconds = []

    def count(source, rate=None, **reading):
        seconds.append(len(waveform := load_audio(source, rate, **reading)) / 16000)
        return waveform

    monkeypatch.setattr(processing_sam, "load_audio", count)
    file = io.BytesIO()
    soundfile.write(file, tone(30.0), 16000, format="WAV")
    chat = [user({"type": "audio", "audio": file.getvalue()}, QUESTION)]
    processor.apply_chat_template(chat, overflow="truncate", **options)
    assert 10.24 < seconds[0] < 10.3
