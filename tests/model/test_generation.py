"""`generate`: against forward calls without a cache, against transformers' Mamba-2, and against itself."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_inputs, tiny_model, tiny_tokenizer
from transformers import AutoModel, DynamicCache, GenerationConfig, Mamba2ForCausalLM

from modeling_sam import SamCache, SamForConditionalGeneration

AUDIO, END = 258, 0
TEXTS = ("What?", "What do you hear in this one?", "Which")
ENDLESS = {"suppress_tokens": [AUDIO, END]}  # no answer ends early, so all have the same length


def clips(number, seed=0):
    return torch.randn(number, 1024, 128, generator=torch.Generator().manual_seed(seed))


def tokens(text):
    return tiny_tokenizer()(text)["input_ids"]


def rows_to_inputs(rows):
    """Left-padded `input_ids` and `attention_mask`."""
    length = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[END] * (length - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
    }


def mixed():
    """Rows with two clips, none, and one, and how many each has."""
    slots = [AUDIO] * 64
    rows = [slots + tokens("and ") + slots + tokens("which?"), tokens("Only text."), slots + tokens("What?")]
    return {**rows_to_inputs(rows), "input_features": clips(3)}, [2, 0, 1]


def single(inputs, index, numbers=None):
    """One row of a batch, without its padding, with its own clips."""
    numbers = numbers or [1] * len(inputs["input_ids"])
    real = inputs["attention_mask"][index] == 1
    features = inputs["input_features"][sum(numbers[:index]) : sum(numbers[: index + 1])]
    found = {"input_ids": inputs["input_ids"][index : index + 1, real]}
    return {**found, "input_features": features} if len(features) else found


def answer(model, inputs, **arguments):
    """The generated tokens alone."""
    given = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    return model.generate(**inputs, **arguments)[:, given:]


@torch.no_grad()
def greedy_by_hand(model, inputs, steps, banned=(AUDIO,)):
    """Greedy decoding that reads the whole sequence again at each step."""
    ids, features = inputs["input_ids"], inputs.get("input_features")
    assert ids.shape[0] == 1
    for _ in range(steps):
        scores = model(ids, input_features=features, use_cache=False).logits[0, -1]
        scores[list(banned)] = -torch.inf
        ids = torch.cat([ids, scores.argmax().view(1, 1)], dim=1)
        if ids[0, -1] == END:
            break
    return ids[:, inputs["input_ids"].shape[1] :]


def embedded(model, inputs):
    """The prompt as the language model reads it."""
    with torch.no_grad():
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        heard = model.get_audio_features(inputs["input_features"])
        embeds[inputs["input_ids"] == AUDIO] = heard.flatten(0, 1)
    return {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}


# -- Greedy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connector", ["concatenation", "time_major", "frequency_major"])
def test_greedy_equals_a_loop_without_cache(connector):
    model, inputs = tiny_model(connector), tiny_inputs(connector=connector)
    expected = greedy_by_hand(model, inputs, 10)
    found = answer(model, inputs, max_new_tokens=10)
    assert torch.equal(found[:, : expected.shape[1]], expected) and len(set(expected[0].tolist())) > 3
    assert torch.equal(answer(model, inputs, max_new_tokens=10, use_cache=False), found)


def test_prompt_comes_first_in_what_is_returned():
    model, inputs = tiny_model(), tiny_inputs()
    found = model.generate(**inputs, max_new_tokens=3, **ENDLESS)
    assert torch.equal(found[:, :-3], inputs["input_ids"])


@pytest.mark.parametrize("arguments", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_unequal_prompts_answer_as_they_do_alone(arguments):
    model, (inputs, numbers) = tiny_model(), mixed()
    together = answer(model, inputs, max_new_tokens=8, **ENDLESS, **arguments)
    for index in range(3):
        alone = answer(model, single(inputs, index, numbers), max_new_tokens=8, **ENDLESS, **arguments)
        assert torch.equal(together[index : index + 1], alone)
    assert len({tuple(row) for row in together.tolist()}) == 3


# -- Padding on the right and within ------------------------------------------------------------------------------


def moved(inputs, order, seed=0):
    """The same prompts with their padding on the right, on both sides, or anywhere, in which there is noise."""
    generator = torch.Generator().manual_seed(seed)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    rows, masks = torch.randint(1, 200, ids.shape, generator=generator), torch.zeros_like(mask)
    for row in range(len(ids)):
        real = ids[row, mask[row] == 1]
        width, length = ids.shape[1], len(real)
        places = {
            "right": torch.arange(length),
            "both": torch.arange(length) + (width - length) // 2,
            "anywhere": torch.randperm(width, generator=generator)[:length].sort().values,
        }[order]
        rows[row, places], masks[row, places] = real, 1
    assert (masks[:, -1] == 0).any()
    return {**inputs, "input_ids": rows, "attention_mask": masks}


WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "samples": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3},
    "all beams": {"num_beams": 3, "num_return_sequences": 3},
    "no cache": {"use_cache": False},
    "penalty": {"repetition_penalty": 3.0, "no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", ["right", "both", "anywhere"])
def test_a_row_goes_on_from_its_last_real_position(order, way):
    model, (inputs, _) = tiny_model(), mixed()
    inputs["input_ids"][inputs["attention_mask"] == 0] = 7  # the penalties see what pads
    given = moved(inputs, order)
    given["input_ids"][given["attention_mask"] == 0] = 7
    before = {name: tensor.clone() for name, tensor in given.items()}
    settings = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True, **ENDLESS, **WAYS[way]}
    torch.manual_seed(0)
    expected = model.generate(**inputs, **settings)
    for name in ("input_ids", "inputs"):
        torch.manual_seed(0)
        found = model.generate(
            **{(name if key == "input_ids" else key): value for key, value in given.items()}, **settings
        )
        length = given["input_ids"].shape[1]
        assert torch.equal(found.sequences[:, length:], expected.sequences[:, length:])
        assert torch.equal(torch.stack(found.logits), torch.stack(expected.logits))
        # the prompts come back as they were given
        copies = len(found.sequences) // 3
        assert torch.equal(found.sequences[:, :length], given["input_ids"].repeat_interleave(copies, dim=0))
    assert all(torch.equal(given[name], before[name]) for name in given)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.int32])
def test_a_mask_of_any_type_aligns(kind):
    model, (inputs, _) = tiny_model(), mixed()
    given = moved(inputs, "right")
    given["attention_mask"] = given["attention_mask"].to(kind)
    expected = answer(model, inputs, max_new_tokens=4, **ENDLESS)
    assert torch.equal(answer(model, given, max_new_tokens=4, **ENDLESS), expected)


@pytest.mark.parametrize("arguments", [{}, {"use_cache": False}, {"num_beams": 2}])
def test_embedded_prompts_are_aligned(arguments):
    model, inputs = tiny_model(), tiny_inputs(TEXTS)
    expected = answer(model, inputs, max_new_tokens=6, **arguments)
    given = moved(inputs, "right")
    embeds = embedded(model, given)
    assert torch.equal(model.generate(**embeds, max_new_tokens=6, **arguments), expected)
    both = model.generate(**embeds, input_ids=given["input_ids"], max_new_tokens=6, **arguments)
    length = given["input_ids"].shape[1]
    assert torch.equal(both[:, :length], given["input_ids"]) and torch.equal(both[:, length:], expected)


@pytest.mark.parametrize("what", ["new ids", "all ids"])
def test_right_padded_prompts_after_a_cache(what):
    model, inputs = tiny_model(), moved(tiny_inputs(TEXTS), "right")
    cache = read(model, inputs)
    new = rows_to_inputs([tokens("and this"), tokens("?"), tokens("so")])
    given = moved(new, "right")
    left, right = (
        {
            "input_ids": torch.cat([inputs["input_ids"], part["input_ids"]], dim=1)
            if what == "all ids"
            else part["input_ids"],
            "attention_mask": torch.cat([inputs["attention_mask"], part["attention_mask"]], dim=1),
        }
        for part in (new, given)
    )
    expected = answer(model, left, cache=cache.fork(), max_new_tokens=6)
    found = model.generate(**right, cache=cache.fork(), max_new_tokens=6)
    length = right["input_ids"].shape[1]
    assert torch.equal(found[:, length:], expected) and torch.equal(found[:, :length], right["input_ids"])
    whole = {name: torch.cat([inputs[name], given[name]], dim=1) for name in ("input_ids", "attention_mask")}
    whole["input_features"] = inputs["input_features"]
    assert torch.equal(answer(model, whole, max_new_tokens=6), expected)


def test_a_padding_token_of_its_own_needs_no_mask():
    """transformers infers the mask."""
    model, inputs = tiny_model(), rows_to_inputs([tokens("Only text."), tokens("x")])
    expected = answer(model, inputs, max_new_tokens=6)
    given = moved(inputs, "right")
    ids = given["input_ids"].masked_fill(given["attention_mask"] == 0, 7)
    for config in ({"pad_token_id": 7}, {"generation_config": GenerationConfig(pad_token_id=7, max_new_tokens=6)}):
        settings = {"max_new_tokens": 6} if "pad_token_id" in config else {}
        assert torch.equal(answer(model, {"input_ids": ids}, **config, **settings), expected)


def test_rows_that_look_padded_need_a_mask():
    """As the padding token is the end of text, transformers would read it as text."""
    model, inputs = tiny_model(), rows_to_inputs([tokens("Only text."), tokens("x")])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for each in (ids, ids.flip(1), ids[1:], ids[:, 8:]):
        with pytest.raises(ValueError, match=r"attention_mask: got None .* pass the processor's attention_mask"):
            model.generate(each, max_new_tokens=3)
    model.generate(ids, attention_mask=torch.ones_like(mask), max_new_tokens=1)
    for each in ([[5, END, END, 6]], [[END, 5]], [[END, 5], [END, 6]], [[5, END], [6, END]], [[END]], [[END], [END]]):
        model.generate(torch.tensor(each), max_new_tokens=1)


def test_a_row_of_padding_alone_is_refused():
    model, (inputs, _) = tiny_model(), mixed()
    inputs["attention_mask"][1] = 0
    with pytest.raises(ValueError, match=r"attention_mask: got no real position in the rows \[1\]"):
        model.generate(**inputs, max_new_tokens=3)


def test_noise_in_the_padding_changes_nothing():
    model, (inputs, _) = tiny_model(), mixed()
    expected = answer(model, inputs, max_new_tokens=8)
    pads = inputs["attention_mask"] == 0
    inputs["input_ids"][pads] = torch.randint(1, 257, (int(pads.sum()),), generator=torch.Generator().manual_seed(1))
    assert torch.equal(answer(model, inputs, max_new_tokens=8), expected)


@pytest.mark.parametrize("arguments", [{}, {"use_cache": False}, {"num_beams": 2}])
def test_embedded_prompts(arguments):
    model, inputs = tiny_model(), tiny_inputs(TEXTS)
    expected = answer(model, inputs, max_new_tokens=8, **arguments)
    assert torch.equal(answer(model, embedded(model, inputs), max_new_tokens=8, **arguments), expected)


def test_an_embedded_prompt_needs_no_mask():
    model, inputs = tiny_model(), tiny_inputs()
    embeds = embedded(model, inputs)["inputs_embeds"]
    expected = answer(model, inputs, max_new_tokens=6)
    assert torch.equal(model.generate(inputs_embeds=embeds, max_new_tokens=6), expected)
    assert torch.equal(model.generate(inputs_embeds=embeds, max_new_tokens=6, use_cache=False), expected)


def test_end_of_text_ends_each_row_by_itself():
    model, inputs = tiny_model(), tiny_inputs(TEXTS)
    free = answer(model, inputs, max_new_tokens=8, **ENDLESS)
    end = int(free[0, 3])
    assert end not in free[0, :3]
    stopped = answer(model, inputs, max_new_tokens=8, eos_token_id=end, pad_token_id=7, **ENDLESS)
    for row, expected in zip(stopped.tolist(), free.tolist()):
        length = expected.index(end) + 1 if end in expected else 8
        assert row[:length] == expected[:length] and set(row[length:]) <= {7}
    alone = answer(model, single(inputs, 0), max_new_tokens=8, eos_token_id=end, **ENDLESS)
    assert alone.tolist() == [free[0, :4].tolist()]
    several = answer(model, single(inputs, 0), max_new_tokens=8, eos_token_id=[999, int(free[0, 1])], **ENDLESS)
    assert several.tolist() == [free[0, :2].tolist()]


def test_what_is_returned_as_a_dict():
    model, inputs = tiny_model(), tiny_inputs(TEXTS)
    asked = {"output_scores": True, "output_logits": True, "output_hidden_states": True}
    found = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True, **asked, **ENDLESS)
    length = inputs["input_ids"].shape[1]
    assert found.sequences.shape == (3, length + 4)
    assert len(found.scores) == len(found.logits) == len(found.hidden_states) == 4
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 4, dtype=torch.long)], dim=1)
    with torch.no_grad():
        whole = model(found.sequences, input_features=inputs["input_features"], attention_mask=mask).logits
    for step in range(4):
        torch.testing.assert_close(found.logits[step], whole[:, length - 1 + step], atol=1e-4, rtol=1e-4)
        assert torch.equal(found.scores[step].argmax(-1), found.sequences[:, length + step])
        assert (found.scores[step][:, [AUDIO, END]] == -torch.inf).all()
    assert type(found.past_key_values) is SamCache
    assert found.past_key_values.get_seq_length() == length + 3  # the last token was not read


def test_tokens_are_streamed():
    class Streamer:
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.tokens.append("end")

    model, inputs, streamer = tiny_model(), tiny_inputs(), Streamer()
    found = model.generate(**inputs, max_new_tokens=4, streamer=streamer)
    assert streamer.tokens == [*found[0].tolist(), "end"]


# -- Beams and sampling -------------------------------------------------------------------------------------------


@torch.no_grad()
def beams_by_hand(model, inputs, beams, steps):
    """Beam search by forward calls without a cache or an early end: the best sequence of `steps` tokens."""
    hypotheses = [([], 0.0)]
    for _ in range(steps):
        candidates = []
        for chosen, score in hypotheses:
            ids = torch.cat([inputs["input_ids"], torch.tensor([chosen], dtype=torch.long)], dim=1)
            logits = model(ids, input_features=inputs.get("input_features"), use_cache=False).logits[0, -1]
            scores = logits.log_softmax(-1)
            scores[ENDLESS["suppress_tokens"]] = -torch.inf
            candidates += [(chosen + [token], score + scores[token].item()) for token in range(len(scores))]
        hypotheses = sorted(candidates, key=lambda pair: -pair[1])[:beams]
    return hypotheses


@pytest.mark.parametrize("index", [0, 1, 2])
def test_beams_with_clips_equal_a_search_by_hand(index):
    model, (inputs, numbers) = tiny_model(), mixed()
    inputs = single(inputs, index, numbers)
    expected = [chosen for chosen, _ in beams_by_hand(model, inputs, 3, 5)]
    found = answer(model, inputs, max_new_tokens=5, num_beams=3, num_return_sequences=3, **ENDLESS)
    assert found.tolist() == expected


@pytest.mark.parametrize("beams", [1, 4])
def test_text_alone_equals_transformers_mamba2(beams):
    model = tiny_model()
    twin = Mamba2ForCausalLM(model.config.text_config).eval()
    twin.load_state_dict(
        {
            name.replace("model.language_model.", "backbone."): tensor
            for name, tensor in model.state_dict().items()
            if "language_model" in name or "lm_head" in name
        }
    )
    inputs = rows_to_inputs([tokens(text) for text in ("Only text.", "A longer text than that one, is it?", "x")])
    settings = {"max_new_tokens": 12, "num_beams": beams, "do_sample": False, "suppress_tokens": [AUDIO]}
    ours = model.generate(**inputs, **settings)
    assert torch.equal(ours, twin.generate(**inputs, pad_token_id=END, eos_token_id=END, **settings))


@pytest.mark.parametrize(
    "arguments",
    [
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 3, "num_return_sequences": 3},
        {"num_beams": 3},
        {"do_sample": True, "num_beams": 3},
    ],
)
def test_rows_are_repeated_with_their_own_clips(arguments):
    """A text with two clips has two rows in `input_features`: repeating those one by one would pair it with the first
    clip twice."""
    model, (inputs, numbers) = tiny_model(), mixed()
    seen = []

    def remember(module, args, kwargs):
        if kwargs.get("input_features") is not None:
            seen.append((kwargs["input_ids"], kwargs["input_features"]))

    handle = model.model.register_forward_pre_hook(remember, with_kwargs=True)
    torch.manual_seed(0)
    found = model.generate(
        **inputs, max_new_tokens=3, return_dict_in_generate=True, output_logits=True, **arguments, **ENDLESS
    )
    handle.remove()
    assert found.sequences.shape[0] == 3 * arguments.get("num_return_sequences", 1)
    assert len(seen) == 1  # the clips are encoded once, at the start
    ids, features = seen[0]
    assert torch.equal(ids, inputs["input_ids"].repeat_interleave(3, dim=0))
    expected = [
        clip for index in range(3) for _ in range(3) for clip in split(inputs["input_features"], numbers)[index]
    ]
    assert torch.equal(features, torch.stack(expected))
    assert not torch.equal(features, inputs["input_features"].repeat_interleave(3, dim=0))
    with torch.no_grad():
        for row in range(9):
            alone = model(**single(inputs, row // 3, numbers), logits_to_keep=1).logits[0, -1]
            torch.testing.assert_close(found.logits[0][row], alone, atol=1e-4, rtol=1e-4)


def split(features, numbers):
    return list(features.split(numbers))


def test_sampling_follows_the_distribution():
    model, inputs = tiny_model(), {"input_ids": torch.tensor([tokens("text")])}
    with torch.no_grad():
        scores = model(**inputs).logits[0, -1]
    scores[AUDIO] = -torch.inf
    probabilities = scores.softmax(-1)
    torch.manual_seed(0)
    found = answer(model, inputs, max_new_tokens=1, do_sample=True, top_k=0, num_return_sequences=600)
    shares = torch.bincount(found.flatten(), minlength=272) / 600
    likely = probabilities.topk(5).indices
    # five standard deviations of a share
    assert ((shares - probabilities)[likely].abs() < 5 * (probabilities[likely] / 600).sqrt()).all()
    torch.manual_seed(0)
    again = answer(model, inputs, max_new_tokens=1, do_sample=True, top_k=0, num_return_sequences=600)
    assert torch.equal(found, again)


# -- Defaults -----------------------------------------------------------------------------------------------------


def test_default_is_greedy_and_is_saved(tmp_path):
    model, inputs = tiny_model(), tiny_inputs(TEXTS)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved["do_sample"] is False and saved["max_new_tokens"] == 400
    assert saved["eos_token_id"] == saved["pad_token_id"] == END and saved["suppress_tokens"] == [AUDIO]
    expected = answer(model, inputs, max_new_tokens=6)
    assert torch.equal(answer(AutoModel.from_pretrained(tmp_path), inputs, max_new_tokens=6), expected)


def test_a_saved_choice_is_kept(tmp_path):
    model = tiny_model()
    model.generation_config.max_new_tokens = 5
    model.generation_config.num_beams = 2
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert (loaded.generation_config.max_new_tokens, loaded.generation_config.num_beams) == (5, 2)


@pytest.mark.parametrize("arguments", [{}, {"do_sample": True}, {"num_beams": 2}])
def test_the_audio_slot_is_never_an_answer(arguments):
    model, inputs = tiny_model(), tiny_inputs(TEXTS)

    def favour(module, args, output):
        output[..., AUDIO] += 1000
        return output

    model.lm_head.register_forward_hook(favour)
    assert not (answer(model, inputs, max_new_tokens=4, **arguments) == AUDIO).any()
    model.generation_config.suppress_tokens = None
    assert (answer(model, inputs, max_new_tokens=1, **arguments) == AUDIO).all()


def test_a_model_of_text_alone_generates():
    config = tiny_config()
    config.audio_token_id = None
    model = SamForConditionalGeneration(config).eval()
    assert model.generation_config.suppress_tokens is None
    assert model.generate(torch.tensor([tokens("text")]), max_new_tokens=3, num_beams=2).shape[0] == 1


def test_max_new_tokens_is_what_is_new():
    model, inputs = tiny_model(), tiny_inputs()
    for number in (1, 5):
        assert answer(model, inputs, max_new_tokens=number, **ENDLESS).shape == (1, number)


# -- Cache --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def read(model, inputs):
    return model(**inputs, use_cache=True).past_key_values


@pytest.mark.parametrize("pieces", [[1], [7], [63], [64], [3, 1, 61, 2, 1]])
def test_reading_in_pieces_equals_reading_at_once(pieces):
    model, inputs = tiny_model(), tiny_inputs(TEXTS)
    whole = embedded(model, inputs)
    length = whole["inputs_embeds"].shape[1]
    with torch.no_grad():
        expected = model(**whole, use_cache=True)
        cache, logits, start, turn = None, [], 0, 0
        while start < length:
            end = min(start + pieces[turn % len(pieces)], length)
            outputs = model(
                inputs_embeds=whole["inputs_embeds"][:, start:end],
                attention_mask=whole["attention_mask"][:, :end],
                past_key_values=cache,
                use_cache=True,
            )
            cache, start, turn = outputs.past_key_values, end, turn + 1
            logits.append(outputs.logits)
    real = whole["attention_mask"] == 1
    torch.testing.assert_close(torch.cat(logits, 1)[real], expected.logits[real], atol=1e-4, rtol=1e-4)
    assert cache.get_seq_length() == length
    for name in ("convolution", "recurrent"):
        for ours, theirs in zip(getattr(cache, name), getattr(expected.past_key_values, name)):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_a_second_clip_may_follow_later():
    model, slots = tiny_model(), [AUDIO] * 64
    first, second = slots + tokens("and "), slots + tokens("which?")
    features = clips(2)
    cache = read(model, {"input_ids": torch.tensor([first]), "input_features": features[:1]})
    whole = {"input_ids": torch.tensor([first + second]), "input_features": features}
    with torch.no_grad():
        expected = model(**whole, logits_to_keep=1).logits
        found = model(
            torch.tensor([second]), input_features=features[1:], past_key_values=cache.fork(), logits_to_keep=1
        ).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    continued = model.generate(
        torch.tensor([second]),
        attention_mask=torch.ones(1, len(first + second), dtype=torch.long),
        input_features=features[1:],
        past_key_values=cache.fork(),
        max_new_tokens=6,
    )
    assert torch.equal(continued[:, len(second) :], answer(model, whole, max_new_tokens=6))


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1]], ids=["padded", "no padding"])
@pytest.mark.parametrize("what", ["new ids", "all ids"])
def test_going_on_from_a_cache(texts, number, what):
    """Whether the mask holds a zero or not: transformers drops one of ones alone."""
    model, inputs = tiny_model(), tiny_inputs(texts)
    rows = len(texts)
    cache = read(model, inputs)
    new = torch.randint(1, 200, (rows, number), generator=torch.Generator().manual_seed(2))
    ids = torch.cat([inputs["input_ids"], new], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(new)], dim=1)
    whole = {"input_ids": ids, "attention_mask": mask, "input_features": inputs["input_features"]}
    expected = answer(model, whole, max_new_tokens=6)
    given = new if what == "new ids" else ids
    found = model.generate(given, attention_mask=mask, past_key_values=cache.fork(), max_new_tokens=6)
    assert torch.equal(found[:, given.shape[1] :], expected)
    # the scores of the first new token show a prompt that was not read whole even where the tokens agree
    settings = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    ours = model.generate(given, attention_mask=mask, past_key_values=cache.fork(), **settings).logits[0]
    torch.testing.assert_close(ours, model.generate(**whole, **settings).logits[0], atol=1e-4, rtol=1e-4)


def test_going_on_from_what_was_generated():
    model, inputs = tiny_model(), tiny_inputs(TEXTS[:1])
    expected = model.generate(**inputs, max_new_tokens=8, **ENDLESS)
    first = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True, **ENDLESS)
    rest = model.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=4, **ENDLESS)
    assert torch.equal(rest, expected)


@pytest.mark.parametrize("mask", ["none", "ones", "with a zero"])
def test_a_mask_that_leaves_out_what_was_read_is_refused(mask):
    model, inputs = tiny_model(), tiny_inputs(TEXTS)
    cache = read(model, inputs)
    new = torch.tensor([[5, 6, 7]] * 3)
    arguments = {}
    if mask != "none":
        arguments["attention_mask"] = torch.ones_like(new)
        arguments["attention_mask"][0, 0] = mask == "ones"
    read_before = inputs["input_ids"].shape[1]
    message = f"attention_mask: got 3 positions, expected more than the {read_before} that the cache has read"
    with pytest.raises(ValueError, match=message):
        model.generate(new, past_key_values=cache, max_new_tokens=3, **arguments)


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1]], ids=["padded", "no padding"])
def test_nothing_new_is_refused(texts):
    model, inputs = tiny_model(), tiny_inputs(texts)
    cache = read(model, inputs)
    given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    with pytest.raises(ValueError, match=r"attention_mask: got .* that the cache has read"):
        model.generate(**given, past_key_values=cache, max_new_tokens=3)


def test_a_cache_that_shall_not_be_used_is_refused():
    """Every step would read the new tokens into it once more."""
    model, inputs = tiny_model(), tiny_inputs()
    cache = read(model, inputs)
    mask = torch.ones(1, inputs["input_ids"].shape[1] + 3, dtype=torch.long)
    with pytest.raises(ValueError, match="use_cache"):
        model.generate(torch.tensor([[5, 6, 7]]), attention_mask=mask, past_key_values=cache, use_cache=False)


def test_going_on_with_embeddings():
    """As everywhere in transformers, `inputs_embeds` begin with what the cache has read."""
    model, inputs = tiny_model(), tiny_inputs(TEXTS)
    whole = embedded(model, inputs)
    half = {name: tensor[:, :70] for name, tensor in whole.items()}
    cache = read(model, half)
    found = model.generate(**whole, past_key_values=cache, max_new_tokens=6)
    assert torch.equal(found, model.generate(**whole, max_new_tokens=6))


def test_reorder_select_and_repeat():
    model, inputs = tiny_model(), tiny_inputs(TEXTS)
    cache = read(model, inputs)
    token = torch.tensor([[5], [6], [7]])

    @torch.no_grad()
    def next_logits(cache, token):
        return model(token, past_key_values=cache).logits

    expected = next_logits(cache.fork(), token)
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    order = torch.tensor([2, 0, 0])
    changed = cache.fork()
    addresses = [tensor.data_ptr() for tensor in (*changed.convolution, *changed.recurrent)]
    changed.reorder_cache(order)
    assert addresses == [tensor.data_ptr() for tensor in (*changed.convolution, *changed.recurrent)]
    torch.testing.assert_close(next_logits(changed, token[order]), expected[order])

    chosen = cache.fork()
    chosen.batch_select_indices(torch.tensor([1]))
    assert chosen.batch_size == 1
    torch.testing.assert_close(next_logits(chosen, token[1:2]), expected[1:2], atol=1e-5, rtol=1e-5)

    repeated = cache.fork()
    repeated.batch_repeat_interleave(2)
    torch.testing.assert_close(
        next_logits(repeated, token.repeat_interleave(2, 0)), expected.repeat_interleave(2, 0), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        next_logits(cache.fork(2), token.repeat_interleave(2, 0)),
        expected.repeat_interleave(2, 0),
        atol=1e-5,
        rtol=1e-5,
    )
    with pytest.raises(ValueError, match="cache: got 3 rows, expected 1 as in the input"):
        next_logits(cache, token[:1])


def test_forks_go_their_own_way():
    model, inputs = tiny_model(), tiny_inputs(TEXTS[:1])
    cache = read(model, inputs)
    kept = [tensor.clone() for tensor in (*cache.convolution, *cache.recurrent)]
    fork = cache.fork()
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]), past_key_values=fork)
        model(torch.tensor([[5]]), past_key_values=fork)
    assert fork.seen_tokens == cache.seen_tokens + 4
    assert all(torch.equal(a, b) for a, b in zip(kept, (*cache.convolution, *cache.recurrent)))


def test_a_cache_survives_a_file(tmp_path):
    model, inputs = tiny_model(), tiny_inputs(TEXTS)
    cache = read(model, inputs)
    save_file(cache.state_dict(), tmp_path / "cache.safetensors")
    loaded = SamCache.from_state_dict(load_file(tmp_path / "cache.safetensors"), 2)
    assert (loaded.seen_tokens, loaded.batch_size, len(loaded)) == (cache.seen_tokens, 3, 2)
    arguments = {"input_ids": torch.tensor([[5, 6]] * 3), "max_new_tokens": 5}
    arguments["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones(3, 2, dtype=torch.long)], 1)
    expected = model.generate(past_key_values=cache, **arguments)
    assert torch.equal(model.generate(past_key_values=loaded, **arguments), expected)


def test_a_cache_that_was_reset_is_new():
    model, inputs = tiny_model(), tiny_inputs(TEXTS)
    cache = read(model, tiny_inputs(TEXTS, seed=5))
    cache.reset()
    assert cache.get_seq_length() == 0
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs, past_key_values=cache).logits, model(**inputs).logits)
    assert torch.equal(
        model.generate(**inputs, past_key_values=SamCache(2), max_new_tokens=5),
        model.generate(**inputs, max_new_tokens=5),
    )


def test_a_bfloat16_state_is_possible():
    model, inputs = tiny_model(), tiny_inputs(TEXTS)
    half, full = SamCache(2, state_dtype=torch.bfloat16), SamCache(2)
    with torch.no_grad():
        for cache in (half, full):
            model(**inputs, past_key_values=cache)
        assert {tensor.dtype for tensor in half.recurrent} == {torch.bfloat16}
        assert {tensor.dtype for tensor in full.recurrent} == {torch.float32}
        token = torch.tensor([[5]] * 3)
        ours, theirs = (model(token, past_key_values=cache).logits for cache in (half, full))
    assert 0 < (ours - theirs).abs().max() < 0.1


# -- Refused ------------------------------------------------------------------------------------------------------


def test_what_a_recurrent_state_cannot_do_is_refused():
    model, inputs = tiny_model(), tiny_inputs()
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(**inputs, prompt_lookup_num_tokens=2, max_new_tokens=3)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(**inputs, assistant_model=tiny_model(), max_new_tokens=3)
    with pytest.raises(ValueError, match="cannot return to an earlier position"):
        read(model, inputs).crop(3)
    with pytest.raises(ValueError, match="got DynamicCache, expected SamCache"):
        model.generate(**inputs, past_key_values=DynamicCache(), max_new_tokens=3)


@pytest.mark.parametrize("name", ["static", "dynamic"])
def test_other_caches_asked_for_are_ignored(name):
    model, inputs = tiny_model(), tiny_inputs(TEXTS)
    expected = answer(model, inputs, max_new_tokens=5)
    assert torch.equal(answer(model, inputs, max_new_tokens=5, cache_implementation=name), expected)


@pytest.mark.parametrize("arguments", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
def test_clips_that_do_not_match_are_refused(arguments):
    model, inputs = tiny_model(), tiny_inputs(TEXTS)
    inputs["input_features"] = inputs["input_features"][:2]
    with pytest.raises(ValueError, match="input_ids and input_features"):
        model.generate(**inputs, max_new_tokens=3, **arguments)
    with pytest.raises(ValueError, match="input_ids and input_features"):
        model.generate(input_features=clips(1), max_new_tokens=3, **arguments)
    with pytest.raises(ValueError, match="inputs_embeds and input_features"):
        model.generate(**embedded(model, tiny_inputs()), input_features=clips(1), max_new_tokens=3, **arguments)


def test_a_mistyped_argument_is_refused():
    with pytest.raises(ValueError, match="input_feature"):
        tiny_model().generate(torch.tensor([tokens("text")]), input_feature=clips(1))
