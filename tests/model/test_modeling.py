"""The encoder, the connector and the whole model, compared with independent formulas and with each other."""

import json
import logging
import math
import sys

import numpy as np
import peft
import pytest
import torch
from safetensors import safe_open
from tiny import tiny_config, tiny_inputs, tiny_model, tiny_tokenizer
from torch.nn import functional as F
from transformers import AutoModel
from transformers.utils import is_flash_attn_2_available

from configuration_sam import SamAudioConfig, SamConfig
from modeling_sam import (
    SamAudioModel,
    SamConnector,
    SamForConditionalGeneration,
    SamModel,
    positions_with_loss,
    sine_cosine_positions,
)

CONNECTORS = ["concatenation", "time_major", "frequency_major"]
LORA_TARGETS = r".*language_model\.layers\.\d+\.mixer\.(in_proj|out_proj)"
AUDIO, SEPARATOR = 258, 257


def clips(number, seed=0):
    return torch.randn(number, 1024, 128, generator=torch.Generator().manual_seed(seed))


def slots(connector="concatenation"):
    return [AUDIO if audio else SEPARATOR for audio in tiny_config(connector).audio_slot_pattern]


def tokens(text):
    return tiny_tokenizer()(text)["input_ids"]


def batch(rows, side="right", pad=0):
    """`input_ids` and `attention_mask` of rows of unequal length; `pad` may be a generator of noise."""
    length = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        missing = length - len(row)
        filling = (
            [pad] * missing if isinstance(pad, int) else torch.randint(1, 257, (missing,), generator=pad).tolist()
        )
        ids.append(filling + row if side == "left" else row + filling)
        mask.append([0] * missing + [1] * len(row) if side == "left" else [1] * len(row) + [0] * missing)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def checkpointed(model):
    """Turns gradient checkpointing on, by the name of the installed transformers."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    return model


def gradients(model, **inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours, theirs, atol=1e-5):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], atol=atol, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


# -- Encoder ------------------------------------------------------------------------------------------------------


def naive_positions(width, steps, bands):
    """EAT's positions in float64, one number at a time: first half the band, second half the time step."""
    table = np.zeros((steps * bands, width))
    quarter = width // 4
    for t in range(steps):
        for f in range(bands):
            for j in range(quarter):
                rate = 10000 ** (-j / quarter)
                table[t * bands + f, j] = math.sin(f * rate)
                table[t * bands + f, quarter + j] = math.cos(f * rate)
                table[t * bands + f, 2 * quarter + j] = math.sin(t * rate)
                table[t * bands + f, 3 * quarter + j] = math.cos(t * rate)
    return table


def naive_encoder(model, spectrogram):
    """EAT in float64 NumPy, written from its description: `[1024, 128]` in, `[513, d]` out, class token first."""
    p = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    config = model.config
    side, heads, width = config.patch_size, config.num_attention_heads, config.hidden_size
    steps, bands = 1024 // side, 128 // side

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    spectrogram = spectrogram.double().numpy()
    patches = np.zeros((steps * bands, width))
    for t in range(steps):
        for f in range(bands):
            patch = spectrogram[t * side : (t + 1) * side, f * side : (f + 1) * side]
            kernel = p["local_encoder.proj.weight"][:, 0]
            patches[t * bands + f] = (kernel * patch).sum((1, 2)) + p["local_encoder.proj.bias"]
    patches += naive_positions(width, steps, bands)
    x = norm(np.concatenate([p["extra_tokens"][0], patches]), "pre_norm")

    erf = np.vectorize(math.erf)
    for block in range(config.num_hidden_layers):
        qkv = linear(x, f"blocks.{block}.attn.qkv")
        heard = []
        for head in range(heads):
            d = width // heads
            q, k, v = (qkv[:, part * width + head * d : part * width + (head + 1) * d] for part in range(3))
            scores = q @ k.T / math.sqrt(d)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heard.append(weights / weights.sum(-1, keepdims=True) @ v)
        x = norm(x + linear(np.concatenate(heard, -1), f"blocks.{block}.attn.proj"), f"blocks.{block}.norm1")
        hidden = linear(x, f"blocks.{block}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + erf(hidden / math.sqrt(2)))
        x = norm(x + linear(hidden, f"blocks.{block}.mlp.fc2"), f"blocks.{block}.norm2")
    return x


def random_encoder(seed=0, attention="sdpa", **sizes):
    """An encoder all of whose tensors are far from their start, so that each of them shows in the output."""
    torch.manual_seed(seed)
    config = SamAudioConfig(**{"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 96, **sizes})
    config._attn_implementation = attention
    model = SamAudioModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5) if name.endswith("weight") else parameter.normal_(std=0.3)
            elif parameter.ndim >= 2:
                parameter.normal_(std=1 / math.sqrt(parameter[0].numel()))
            else:
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_encoder_equals_its_description_in_float64(attention):
    model = random_encoder(num_hidden_layers=3, attention=attention)
    assert model.blocks[0].attn.config._attn_implementation == attention
    spectrogram = clips(1)
    with torch.no_grad():
        ours = model(spectrogram).last_hidden_state
    assert ours.shape == (1, 512, 128)  # the class token is gone
    theirs = torch.from_numpy(naive_encoder(model, spectrogram[0])[1:])
    torch.testing.assert_close(ours[0].double(), theirs, atol=3e-5, rtol=0)


def test_encoder_of_full_width_equals_its_description():
    model = random_encoder(hidden_size=768, num_attention_heads=12, intermediate_size=64, num_hidden_layers=1)
    spectrogram = clips(1)
    with torch.no_grad():
        ours = model(spectrogram).last_hidden_state[0]
    theirs = torch.from_numpy(naive_encoder(model, spectrogram[0])[1:])
    torch.testing.assert_close(ours.double(), theirs, atol=3e-5, rtol=0)


def test_positions_follow_eats_formula():
    table = sine_cosine_positions(768, 64, 8)
    assert table.shape == (512, 768) and table.dtype == torch.float32
    np.testing.assert_allclose(table.double().numpy(), naive_positions(768, 64, 8), atol=1e-5, rtol=0)
    by_place = table.view(64, 8, 768)
    assert (by_place[:, :, :384] == by_place[:1, :, :384]).all()  # the band alone
    assert (by_place[:, :, 384:] == by_place[:, :1, 384:]).all()  # the time alone
    assert table[0].tolist() == ([0] * 192 + [1] * 192) * 2
    assert len({tuple(row.tolist()) for row in table}) == 512


def test_class_token_hears_but_is_dropped_and_has_no_position():
    model = random_encoder(num_hidden_layers=1)
    seen = []
    model.pre_norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        before = model(clips(1)).last_hidden_state
        assert torch.equal(seen[0][:, :1], model.extra_tokens)
        model.extra_tokens += torch.randn(128, generator=torch.Generator().manual_seed(1))
        assert (model(clips(1)).last_hidden_state - before).abs().max() > 1e-3


def test_encoder_rows_do_not_hear_each_other():
    model = random_encoder(num_hidden_layers=2)
    with torch.no_grad():
        together, alone = model(clips(3)).last_hidden_state, model(clips(3)[1:2]).last_hidden_state
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1024, 128), (1, 512, 128), (1, 128, 1024), (1, 1, 1024, 128)])
def test_encoder_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"input_features: got shape .*expected \[clips, 1024 frames, 128 mel bins\]"):
        random_encoder(num_hidden_layers=1)(torch.zeros(shape))


def test_eager_and_sdpa_give_the_same_after_loading(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    inputs, logits = tiny_inputs(), []
    for name in ("eager", "sdpa"):
        model = AutoModel.from_pretrained(tmp_path, attn_implementation=name)
        assert model.model.audio_tower.blocks[0].attn.config._attn_implementation == name
        with torch.no_grad():
            logits.append(model(**inputs).logits)
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
    assert AutoModel.from_pretrained(tmp_path).model.audio_tower.config._attn_implementation == "sdpa"


def test_attention_can_be_changed_on_a_loaded_model():
    model = tiny_model()
    assert model.model.audio_tower.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    assert model.model.audio_tower.blocks[0].attn.config._attn_implementation == "eager"


def test_flash_attention_that_is_not_installed_says_so(tmp_path, monkeypatch, request):
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # find_spec then finds nothing, whatever is installed
    is_flash_attn_2_available.cache_clear()
    request.addfinalizer(is_flash_attn_2_available.cache_clear)
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ImportError, match="FlashAttention2"):
        AutoModel.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


def test_encoder_alone_is_saved_and_loaded(tmp_path):
    model = random_encoder(num_hidden_layers=2)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "positions" not in names and "blocks.1.attn.qkv.weight" in names
    loaded, report = SamAudioModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert type(AutoModel.from_pretrained(tmp_path)) is SamAudioModel
    with torch.no_grad():
        assert torch.equal(loaded(clips(1)).last_hidden_state, model(clips(1)).last_hidden_state)


# -- Connector ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connector", CONNECTORS)
def test_connector_arranges_by_hand_written_indices(connector):
    module = SamConnector(tiny_config(connector))
    width = 32
    # the number at [clip, n, j] tells clip, time step, band and dimension
    hidden = torch.empty(2, 512, width)
    for n in range(512):
        for clip in range(2):
            hidden[clip, n] = clip * 1e6 + (n // 8) * 1e4 + (n % 8) * 1e3 + torch.arange(width)
    arranged = module.arrange(hidden)
    assert arranged.shape == ((2, 64, 8 * width) if connector == "concatenation" else (2, 512, width))
    for clip in range(2):
        for t in range(64):
            for band in range(8):
                expected = clip * 1e6 + t * 1e4 + band * 1e3 + torch.arange(width)
                if connector == "concatenation":
                    found = arranged[clip, t, band * width : (band + 1) * width]
                elif connector == "time_major":
                    found = arranged[clip, t * 8 + band]
                else:
                    found = arranged[clip, band * 64 + t]
                assert torch.equal(found, expected)


@pytest.mark.parametrize("connector", CONNECTORS)
def test_connector_is_linear_gelu_linear(connector):
    torch.manual_seed(0)
    module = SamConnector(tiny_config(connector))
    hidden = torch.randn(1, 512, 32)
    x = module.arrange(hidden).double()
    x = x @ module.linear_1.weight.double().T + module.linear_1.bias
    x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    x = x @ module.linear_2.weight.double().T + module.linear_2.bias
    torch.testing.assert_close(module(hidden).double(), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("connector", CONNECTORS)
def test_slots_are_filled_in_order_and_separators_come_from_the_table(connector):
    model = tiny_model(connector)
    seen = []
    model.model.language_model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    first, second = slots(connector), tokens("And this: ") + slots(connector) + tokens(" ?")
    inputs = batch([first + tokens("x"), second], side="left")
    with torch.no_grad():
        model(**inputs, input_features=clips(2))
        encoded = model.model.audio_tower(clips(2)).last_hidden_state
        heard = model.get_audio_features(clips(2))
        assert torch.equal(heard, model.model.connector(encoded))
    table = model.get_input_embeddings().weight
    expected, clip, place = [], -1, 0
    for row in range(2):
        clip, place = clip + 1, 0
        for token in inputs["input_ids"][row].tolist():
            if token == AUDIO:
                expected.append(heard[clip, place])
                place += 1
            else:
                expected.append(table[token])
        assert place == (64 if connector == "concatenation" else 512)
    torch.testing.assert_close(seen[0].flatten(0, 1), torch.stack(expected))


@pytest.mark.parametrize(
    ("connector", "heard"), [("concatenation", False), ("time_major", True), ("frequency_major", True)]
)
def test_separators_are_heard_where_the_connector_has_them(connector, heard):
    model, inputs = tiny_model(connector), tiny_inputs(connector=connector)
    with torch.no_grad():
        before = model(**inputs).logits
        model.get_input_embeddings().weight[SEPARATOR] += 1
        after = model(**inputs).logits
    other = [token for token in range(272) if token != SEPARATOR]  # the head is tied: its own column always changes
    assert bool((before[..., other] != after[..., other]).any()) is heard


# -- Loss and logits ----------------------------------------------------------------------------------------------


def test_loss_is_next_token_cross_entropy():
    model, inputs = tiny_model(), tiny_inputs(("What do you hear?", "Which?"))
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, -5:] = inputs["input_ids"][0, -5:]
    labels[1, -3:-1] = inputs["input_ids"][1, -3:-1]
    with torch.no_grad():
        outputs = model(**inputs, labels=labels)
        summed = model(**inputs, labels=labels, num_items_in_batch=20).loss
        tensor = model(**inputs, labels=labels, num_items_in_batch=torch.tensor(20)).loss
    logits, by_hand = outputs.logits.double(), []
    for row in range(2):
        for place in range(1, labels.shape[1]):
            if labels[row, place] != -100:
                scores = logits[row, place - 1]
                by_hand.append(scores.logsumexp(0) - scores[labels[row, place]])
    assert len(by_hand) == 7
    total = float(torch.stack(by_hand).sum())
    assert outputs.loss.item() == pytest.approx(total / 7, rel=1e-5)
    assert summed.item() == tensor.item() == pytest.approx(total / 20, rel=1e-5)
    assert outputs.logits.dtype == torch.float32


def test_loss_over_accumulated_batches_equals_the_loss_of_one():
    model = tiny_model().train()
    inputs = tiny_inputs(("What do you hear?", "Which?", "And now?"))
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    labels[0, :-9] = -100
    whole, expected = gradients(model, **inputs, labels=labels)
    number = int((labels[:, 1:] != -100).sum())
    model.zero_grad()
    total = 0.0
    for rows in (slice(0, 1), slice(1, 3)):
        part = {name: tensor[rows] for name, tensor in inputs.items()}
        loss = model(**part, labels=labels[rows], num_items_in_batch=number).loss
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(whole.item(), rel=1e-5)
    assert_same_gradients({name: p.grad for name, p in model.named_parameters()}, expected)


def test_logits_to_keep():
    model, inputs = tiny_model(), tiny_inputs(("What do you hear?", "Which?"))
    with torch.no_grad():
        full = model(**inputs).logits
        assert full.shape == (2, inputs["input_ids"].shape[1], 272)
        assert torch.equal(model(**inputs, logits_to_keep=0).logits, full)
        torch.testing.assert_close(model(**inputs, logits_to_keep=3).logits, full[:, -3:])
        torch.testing.assert_close(model(**inputs, logits_to_keep=1).logits, full[:, -1:])
        places = torch.tensor([70, 2, 65])
        torch.testing.assert_close(model(**inputs, logits_to_keep=places).logits, full[:, places])


def test_hidden_states_and_tuple():
    model, inputs = tiny_model(), tiny_inputs(("What do you hear?", "Which?"))
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)
        assert model(**inputs).hidden_states is None
        as_tuple = model(**inputs, labels=inputs["input_ids"], return_dict=False)
    assert len(outputs.hidden_states) == 3
    assert {tuple(states.shape) for states in outputs.hidden_states} == {(*inputs["input_ids"].shape, 32)}
    torch.testing.assert_close(F.linear(outputs.hidden_states[-1], model.lm_head.weight), outputs.logits)
    table = model.get_input_embeddings().weight
    text = (inputs["input_ids"] != AUDIO) & (inputs["attention_mask"] == 1)
    torch.testing.assert_close(outputs.hidden_states[0][text], table[inputs["input_ids"][text]])
    torch.testing.assert_close(
        outputs.hidden_states[0][~text & (inputs["attention_mask"] == 1)], outputs.audio_hidden_states.flatten(0, 1)
    )
    assert isinstance(as_tuple, tuple)
    assert as_tuple[0].ndim == 0 and torch.equal(as_tuple[1], outputs.logits)


def test_embedded_input_equals_ids():
    model, inputs = tiny_model(), tiny_inputs(("What do you hear?", "Which?"))
    with torch.no_grad():
        by_ids = model(**inputs).logits
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        embeds[inputs["input_ids"] == AUDIO] = model.get_audio_features(inputs["input_features"]).flatten(0, 1)
        by_embeds = model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits
    torch.testing.assert_close(by_embeds, by_ids)
    for wrong in ({}, {"input_ids": inputs["input_ids"], "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="input_ids and inputs_embeds: pass exactly one"):
            model(**wrong)
    with pytest.raises(ValueError, match="inputs_embeds and input_features"):
        model(inputs_embeds=embeds, input_features=inputs["input_features"])


def test_training_and_evaluation_give_the_same_logits():
    model, inputs = tiny_model(), tiny_inputs(("What do you hear?", "Which?"))
    real = inputs["attention_mask"] == 1
    with torch.no_grad():
        evaluated = model.eval()(**inputs)
        trained = model.train()(**inputs)
    torch.testing.assert_close(trained.logits[real], evaluated.logits[real], atol=1e-5, rtol=1e-5)
    assert evaluated.past_key_values is not None and trained.past_key_values is None


def test_autocast_trains_close_to_float32():
    model = tiny_model().train()
    inputs = batch([slots() + tokens("What?") + tokens("A dog."), slots() + tokens("Which?") + tokens("A cat barks.")])
    inputs.update(input_features=clips(2), labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == AUDIO, -100))
    exact, expected = gradients(model, **inputs)
    with torch.autocast("cpu", torch.bfloat16):
        loss, found = gradients(model, **inputs)
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].dtype == torch.float32
        cosine = F.cosine_similarity(found[name].flatten(), expected[name].flatten(), dim=0)
        assert cosine > 0.9, (name, cosine)


# -- Padding ------------------------------------------------------------------------------------------------------


def mixed_rows(connector="concatenation"):
    """Rows with no clip, one, and two, and their clips in order."""
    a_clip = slots(connector)
    return [
        tokens("Only text here."),
        a_clip + tokens("What?"),
        a_clip + tokens("first, then ") + a_clip + tokens("which one?"),
    ], [0, 1, 2]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("connector", CONNECTORS)
def test_padding_changes_neither_logits_nor_cache(side, connector):
    model = tiny_model(connector)
    rows, numbers = mixed_rows(connector)
    features = clips(3)
    inputs = batch(rows, side, pad=torch.Generator().manual_seed(3))
    with torch.no_grad():
        together = model(**inputs, input_features=features, use_cache=True)
        for index, row in enumerate(rows):
            mine = features[sum(numbers[:index]) : sum(numbers[: index + 1])]
            alone = model(torch.tensor([row]), input_features=mine if len(mine) else None, use_cache=True)
            real = inputs["attention_mask"][index] == 1
            torch.testing.assert_close(together.logits[index][real], alone.logits[0], atol=2e-5, rtol=1e-5)
            for name in ("convolution", "recurrent"):
                ours, theirs = (getattr(out.past_key_values, name) for out in (together, alone))
                for layer in range(2):
                    torch.testing.assert_close(ours[layer][index], theirs[layer][0], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_neither_loss_nor_gradients(training):
    model = tiny_model().train(training)
    rows, _ = mixed_rows()
    results = []
    for side, seed in (("left", 1), ("right", 2)):
        inputs = batch(rows, side, pad=torch.Generator().manual_seed(seed))
        labels = inputs["input_ids"].masked_fill(
            (inputs["attention_mask"] == 0) | (inputs["input_ids"] == AUDIO), -100
        )
        for index, row in enumerate(rows):  # nothing comes before the first position: it is not predicted
            labels[index, labels.shape[1] - len(row) if side == "left" else 0] = -100
        results.append(gradients(model, **inputs, labels=labels, input_features=clips(3)))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-5)
    assert_same_gradients(results[0][1], results[1][1])


def test_a_row_of_padding_alone_disturbs_nobody():
    model = tiny_model()
    inputs = batch([tokens("Only text here."), tokens("x")])
    inputs["attention_mask"][1] = 0
    with torch.no_grad():
        logits = model(**inputs).logits
        alone = model(inputs["input_ids"][:1]).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[:1], alone, atol=1e-5, rtol=1e-5)


def test_a_mask_of_another_batch_is_refused():
    model = tiny_model()
    ids = torch.tensor([tokens("Only text here.")])
    for mask in (torch.ones(2, ids.shape[1]), torch.ones(1, ids.shape[1] - 1)):
        with pytest.raises(ValueError, match="attention_mask: got shape"):
            model(ids, attention_mask=mask)


# -- Clips --------------------------------------------------------------------------------------------------------


def test_clips_matter_and_their_order_does():
    model = tiny_model()
    inputs = batch([slots() + tokens("then ") + slots() + tokens("which?")])
    features = clips(2)
    with torch.no_grad():
        straight = model(**inputs, input_features=features).logits[:, -1]
        swapped = model(**inputs, input_features=features.flip(0)).logits[:, -1]
        silent = model(**inputs, input_features=torch.zeros_like(features)).logits[:, -1]
    assert (straight - swapped).abs().max() > 1e-3
    assert (straight - silent).abs().max() > 1e-3


def test_rows_do_not_hear_each_others_clips():
    model = tiny_model()
    rows, _ = mixed_rows()
    inputs = batch(rows, "left")
    features = clips(3)
    changed = features.clone()
    changed[1] = clips(1, seed=9)[0]  # the first clip of the last row
    with torch.no_grad():
        before, after = (model(**inputs, input_features=f).logits for f in (features, changed))
    torch.testing.assert_close(after[:2], before[:2], atol=1e-5, rtol=1e-5)
    assert (after[2, -1] - before[2, -1]).abs().max() > 1e-3


def test_nothing_is_heard_before_its_place():
    model = tiny_model()
    row = tokens("Now: ") + slots() + tokens("which?")
    start = len(tokens("Now: "))
    with torch.no_grad():
        before = model(torch.tensor([row]), input_features=clips(1)).logits
        after = model(torch.tensor([row]), input_features=clips(1, seed=5)).logits
    torch.testing.assert_close(before[:, :start], after[:, :start])
    assert (before[:, start] != after[:, start]).any()


@pytest.mark.parametrize(
    ("rows", "number"),
    [
        ([slots() + tokens("x")], 2),
        ([slots() + tokens("x")], None),
        ([tokens("text alone")], 1),
        ([slots()[:-1] + tokens("x")], 1),
        ([slots() * 2 + tokens("x")], 1),
        ([slots() + slots()[:32], slots()[32:]], 2),  # right in sum, wrong by row
    ],
    ids=["a clip too many", "slots without clips", "clips without slots", "a slot too few", "too many", "by row"],
)
@pytest.mark.parametrize("training", [False, True])
def test_slots_and_clips_that_do_not_match_are_refused(rows, number, training):
    features = None if number is None else clips(number)
    with pytest.raises(ValueError, match=r"input_ids and input_features: the rows of input_ids hold .* audio slots"):
        tiny_model().train(training)(**batch(rows), input_features=features)


def test_clips_for_a_single_new_token_without_a_slot_are_refused():
    model, inputs = tiny_model(), tiny_inputs()
    with torch.no_grad():
        cache = model(**inputs).past_key_values
        with pytest.raises(ValueError, match="input_features"):
            model(torch.tensor([[5]]), input_features=inputs["input_features"], past_key_values=cache)


def test_a_model_without_an_audio_token_reads_text_only():
    config = tiny_config()
    config.audio_token_id = None
    model = SamForConditionalGeneration(config).eval()
    assert model(torch.tensor([tokens("text alone")])).logits.isfinite().all()
    for call in (model, model.generate, lambda **inputs: model.generate(**inputs, num_beams=2)):
        with pytest.raises(ValueError, match="audio_token_id is None"):
            call(**tiny_inputs())


def test_a_foreign_cache_is_refused():
    from transformers import DynamicCache

    with pytest.raises(ValueError, match="cache: got DynamicCache, expected SamCache"):
        tiny_model()(torch.tensor([tokens("text")]), past_key_values=DynamicCache())


# -- Packing ------------------------------------------------------------------------------------------------------


def packed_and_apart(connector="concatenation"):
    """Four texts in two packed rows, and the same four in rows of their own; the clips in the same order."""
    rows, _ = mixed_rows(connector)
    rows.append(slots(connector) + tokens("What do you hear in this one?"))
    # the text without a clip stands second: its first token has a label, but nothing of its own to be predicted from
    rows[0], rows[1] = rows[1], rows[0]
    ids = [[*rows[0], *rows[1], *rows[2]], rows[3]]
    numbers = [[7] * len(rows[0]) + [2] * len(rows[1]) + [4] * len(rows[2]), [1] * len(rows[3])]
    packed = batch(ids)
    length = packed["input_ids"].shape[1]
    packed["seq_idx"] = torch.tensor([row + [row[-1]] * (length - len(row)) for row in numbers])
    results = []
    for inputs in (packed, batch(rows)):
        pads = (inputs["attention_mask"] == 0) | (inputs["input_ids"] == AUDIO) | (inputs["input_ids"] == SEPARATOR)
        inputs.update(labels=inputs["input_ids"].masked_fill(pads, -100), input_features=clips(4))
        results.append(inputs)
    return results


@pytest.mark.parametrize("connector", ["concatenation", "frequency_major"])
def test_packed_rows_give_the_same_loss_and_gradients(connector):
    model = tiny_model(connector).train()
    packed, apart = packed_and_apart(connector)
    number = int((apart["labels"][:, 1:] != -100).sum())
    ours = gradients(model, **packed, num_items_in_batch=number)
    theirs = gradients(model, **apart, num_items_in_batch=number)
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    assert_same_gradients(ours[1], theirs[1])

    del packed["seq_idx"]  # and it is seq_idx that does it
    assert abs(model(**packed, num_items_in_batch=number).loss.item() - theirs[0].item()) > 1e-4


def test_packed_rows_can_be_evaluated():
    model = tiny_model().eval()
    packed, apart = packed_and_apart()
    with torch.no_grad():
        ours, theirs = model(**packed, num_items_in_batch=1).loss, model(**apart, num_items_in_batch=1).loss
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    with pytest.raises(ValueError, match="seq_idx"):
        model(**packed, use_cache=True)


# -- Training -----------------------------------------------------------------------------------------------------


def test_every_parameter_of_a_batch_with_audio_gets_a_gradient():
    model = tiny_model().train()
    inputs = tiny_inputs(("What do you hear?", "Which?"))
    _, found = gradients(model, **inputs, labels=inputs["input_ids"])
    for name, parameter in model.named_parameters():
        assert name in found and bool(found[name].abs().sum() > 0), name
        assert parameter.requires_grad


@pytest.mark.parametrize("embedded", [False, True])
def test_every_parameter_of_a_text_only_batch_gets_a_gradient(embedded):
    model = tiny_model().train()
    ids = torch.tensor([tokens("Only text here.")])
    inputs = {"inputs_embeds": model.get_input_embeddings()(ids)} if embedded else {"input_ids": ids}
    loss, found = gradients(model, **inputs, labels=ids)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, gradient in found.items():
        heard = "audio_tower" in name or "connector" in name
        assert bool(gradient.any()) is not heard, name
    assert loss.item() == pytest.approx(model.eval()(ids, labels=ids).loss.item(), rel=1e-5)


def test_frozen_parameters_stay_frozen_in_a_text_only_batch():
    model = tiny_model().train()
    model.model.audio_tower.requires_grad_(False)
    ids = torch.tensor([tokens("Only text here.")])
    _, found = gradients(model, input_ids=ids, labels=ids)
    assert not any("audio_tower" in name for name in found)
    assert any("connector" in name for name in found)


@pytest.mark.parametrize("connector", ["concatenation", "time_major"])
def test_gradient_checkpointing_changes_nothing(connector):
    model = tiny_model(connector).train()
    inputs = tiny_inputs(("What do you hear?", "Which?"), connector=connector)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    calls = []
    for block in (model.model.audio_tower.blocks[0].mlp, model.model.language_model.layers[0].mixer):
        block.register_forward_pre_hook(lambda module, _: calls.append(type(module).__name__))
    loss, expected = gradients(model, **inputs, labels=labels)
    assert sorted(calls) == ["SamAudioMLP", "SamMamba2Mixer"]
    calls.clear()
    checkpointed(model)
    again, found = gradients(model, **inputs, labels=labels)
    assert sorted(calls) == ["SamAudioMLP"] * 2 + ["SamMamba2Mixer"] * 2  # the blocks were computed again
    assert torch.equal(loss, again)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=0, rtol=0)


def test_gradient_checkpointing_with_a_cache_asked_for():
    model = checkpointed(tiny_model().train())
    inputs = tiny_inputs()
    _, expected = gradients(tiny_model().train(), **inputs, labels=inputs["input_ids"])
    _, found = gradients(model, **inputs, labels=inputs["input_ids"], use_cache=True)
    assert_same_gradients(found, expected)


def test_gradient_checkpointing_of_the_encoder_alone():
    model = random_encoder(num_hidden_layers=2).train()
    results = []
    for _ in range(2):
        model.zero_grad()
        model(clips(1)).last_hidden_state.pow(3).mean().backward()
        results.append({name: p.grad.clone() for name, p in model.named_parameters()})
        checkpointed(model)
    for name, gradient in results[0].items():
        assert torch.equal(gradient, results[1][name]), name


# -- Fresh weights ------------------------------------------------------------------------------------------------


def test_fresh_weights_start_as_mamba2_does():
    torch.manual_seed(0)
    model = AutoModel.from_config(tiny_config(num_heads=64, hidden_size=512, num_hidden_layers=2))
    for layer in model.model.language_model.layers:
        mixer = layer.mixer
        decay, step = mixer.A_log.exp(), F.softplus(mixer.dt_bias)
        assert 1 <= decay.min() < 3 and 14 < decay.max() <= 16.001
        assert 1e-3 * 0.999 <= step.min() < 3e-3 and 3e-2 < step.max() <= 1e-1 * 1.001
        # log-uniform: the middle of the range in logarithms
        assert step.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.5)
        assert (mixer.D == 1).all() and (mixer.norm.weight == 1).all() and (layer.norm.weight == 1).all()
        assert 0 < mixer.out_proj.weight.abs().max() <= 1 / math.sqrt(1024 * 2)
        assert 0 < mixer.conv1d.weight.abs().max() <= 0.5
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.model.connector.linear_2.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not model.model.connector.linear_2.bias.any()
    assert model.model.audio_tower.extra_tokens.any()
    for norm in (model.model.audio_tower.pre_norm, model.model.audio_tower.blocks[0].norm1):
        assert (norm.weight == 1).all() and not norm.bias.any()
    assert torch.equal(model.model.audio_tower.positions, sine_cosine_positions(32, 64, 8))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_fresh_bfloat16_weights_keep_what_is_sensitive_in_float32():
    model = AutoModel.from_config(tiny_config(), dtype=torch.bfloat16)
    kept = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert kept == {n for n, _ in model.named_parameters() if n.endswith(("A_log", ".D", "dt_bias"))}


def test_only_what_a_checkpoint_lacks_is_made_new(tmp_path):
    model = tiny_model()
    weights = model.state_dict()
    lost = ["model.connector.linear_1.weight", "model.language_model.layers.1.mixer.A_log"]
    for name in lost:
        del weights[name]
    model.save_pretrained(tmp_path, state_dict=weights)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == set(lost)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)) is (name not in lost), name
    assert 1 <= loaded.get_parameter(lost[1]).exp().min()


# -- Save and load ------------------------------------------------------------------------------------------------


def dtypes(directory):
    found = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found.update({name: file.get_tensor(name).dtype for name in file.keys()})
    return found


@pytest.mark.parametrize("connector", CONNECTORS)
def test_saved_and_loaded_gives_the_same_logits(tmp_path, connector):
    model, inputs = tiny_model(connector), tiny_inputs(connector=connector)
    model.save_pretrained(tmp_path)
    stored = dtypes(tmp_path)
    assert set(stored) == {name for name, _ in model.named_parameters()}
    assert "lm_head.weight" not in stored and "model.audio_tower.positions" not in stored
    loaded, report = SamForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert not loaded.training


def test_untied_head_is_stored(tmp_path):
    model, inputs = tiny_model(tie_word_embeddings=False), tiny_inputs()
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" in dtypes(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_shards(tmp_path):
    model, inputs = tiny_model(), tiny_inputs()
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert (tmp_path / "model.safetensors.index.json").exists()
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_bfloat16_keeps_what_is_sensitive_in_float32(tmp_path):
    model, inputs = tiny_model(), tiny_inputs()
    model.save_pretrained(tmp_path / "float32")
    loaded = AutoModel.from_pretrained(tmp_path / "float32", dtype=torch.bfloat16)
    sensitive = (".A_log", ".D", ".dt_bias")
    for name, parameter in loaded.named_parameters():
        if name.endswith(sensitive):
            assert torch.equal(parameter, model.get_parameter(name)), name  # not rounded on the way
            assert parameter.dtype == torch.float32
        else:
            assert parameter.dtype == torch.bfloat16, name
    assert (
        model.get_parameter("model.language_model.layers.0.mixer.A_log").bfloat16().float()
        != model.get_parameter("model.language_model.layers.0.mixer.A_log")
    ).any()

    loaded.save_pretrained(tmp_path / "bfloat16")
    for name, dtype in dtypes(tmp_path / "bfloat16").items():
        assert dtype == (torch.float32 if name.endswith(sensitive) else torch.bfloat16), name
    assert json.loads((tmp_path / "bfloat16" / "config.json").read_text())["dtype"] == "bfloat16"
    again = AutoModel.from_pretrained(tmp_path / "bfloat16")
    for name, parameter in again.named_parameters():
        assert (
            torch.equal(parameter, loaded.get_parameter(name)) and parameter.dtype == loaded.get_parameter(name).dtype
        )
    with torch.no_grad():
        rounded = loaded(**inputs).logits
        assert torch.equal(again(**inputs).logits, rounded) and rounded.dtype == torch.float32
        exact = model(**inputs).logits
    assert F.cosine_similarity(rounded.flatten(), exact.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("arguments", [{}, {"dtype": torch.bfloat16}, {"device_map": "cpu"}, {"dtype": torch.float16}])
def test_positions_are_right_after_loading(tmp_path, arguments):
    tiny_model().save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, **arguments)
    positions = loaded.model.audio_tower.positions
    np.testing.assert_allclose(positions.double().numpy(), naive_positions(32, 64, 8), atol=1e-5)
    alone = loaded.model.audio_tower
    alone.save_pretrained(tmp_path / "encoder")
    again = SamAudioModel.from_pretrained(tmp_path / "encoder", **arguments)
    assert torch.equal(again.positions, positions)


def test_headless_model_and_encoder_load_from_a_whole_checkpoint(tmp_path):
    model, inputs = tiny_model(), tiny_inputs()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model.model(**inputs).last_hidden_state
        assert torch.equal(SamModel.from_pretrained(tmp_path)(**inputs).last_hidden_state, expected)
        encoder, report = SamAudioModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"]
        heard = encoder(inputs["input_features"]).last_hidden_state
        assert torch.equal(heard, model.model.audio_tower(inputs["input_features"]).last_hidden_state)


def test_resized_embeddings(tmp_path):
    model, inputs = tiny_model(), tiny_inputs()
    with torch.no_grad():
        before = model(**inputs).logits
    model.resize_token_embeddings(300)
    assert model.config.text_config.vocab_size == 300
    assert model.lm_head.weight is model.get_input_embeddings().weight
    with torch.no_grad():
        after = model(**inputs, labels=torch.full_like(inputs["input_ids"], 299))
    assert after.logits.shape[-1] == 300 and after.loss.isfinite()
    torch.testing.assert_close(after.logits[..., :272], before)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(AutoModel.from_pretrained(tmp_path)(**inputs).logits, after.logits)


def test_a_wrong_size_is_an_error(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatch"):
        SamForConditionalGeneration.from_pretrained(tmp_path, config=tiny_config(hidden_size=64, num_heads=8))


# -- LoRA ---------------------------------------------------------------------------------------------------------


def with_lora(model, **changes):
    torch.manual_seed(1)
    model = peft.get_peft_model(
        model, peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": LORA_TARGETS, **changes})
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # starts at zero, where the adapter says nothing and A gets no gradient
                parameter.normal_(std=0.2)
    return model


def test_lora_sits_on_the_language_models_projections_only():
    model = with_lora(tiny_model())
    found = {name for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}
    expected = {
        f"base_model.model.model.language_model.layers.{layer}.mixer.{name}"
        for layer in range(2)
        for name in ("in_proj", "out_proj")
    }
    assert found == expected
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"{name}.lora_{side}.default.weight" for name in expected for side in "AB"
    }


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_adapter_tensor_learns(checkpointing):
    model = with_lora(tiny_model()).train()
    if checkpointing:
        checkpointed(model.base_model.model)
        model.enable_input_require_grads()
    inputs = tiny_inputs(("What do you hear?", "Which?"))
    _, found = gradients(model, **inputs, labels=inputs["input_ids"])
    assert len(found) >= 2 * 2 * 2
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert bool(found[name].abs().max() > 1e-6), name


def test_adapters_speak_alike_in_training_and_evaluation():
    inputs = tiny_inputs()
    with torch.no_grad():
        plain = tiny_model()(**inputs).logits
        model = with_lora(tiny_model())
        trained, evaluated = model.train()(**inputs).logits, model.eval()(**inputs).logits
        with model.disable_adapter():
            torch.testing.assert_close(model(**inputs).logits, plain)
    torch.testing.assert_close(trained, evaluated, atol=1e-5, rtol=1e-5)
    assert (evaluated - plain).abs().max() > 1e-2


def test_adapters_are_saved_merged_and_loaded(tmp_path):
    inputs = tiny_inputs()
    model = with_lora(tiny_model(), modules_to_save=["connector"]).eval()
    with torch.no_grad():
        model.base_model.model.model.connector.modules_to_save["default"].linear_2.bias += 1
        expected = model(**inputs).logits
        model.save_pretrained(tmp_path / "adapter")
        loaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter").eval()
        assert torch.equal(loaded(**inputs).logits, expected)

        merged = loaded.merge_and_unload()
        assert type(merged) is SamForConditionalGeneration
        torch.testing.assert_close(merged(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
        merged.save_pretrained(tmp_path / "merged")
        again, report = AutoModel.from_pretrained(tmp_path / "merged", output_loading_info=True)
        assert not any(report.values()), report
        assert torch.equal(again(**inputs).logits, merged(**inputs).logits)


def test_a_model_with_adapters_generates():
    model, inputs = with_lora(tiny_model()).eval(), tiny_inputs(("What do you hear?", "Which?"))
    found = model.generate(**inputs, max_new_tokens=6)
    merged = model.merge_and_unload().generate(**inputs, max_new_tokens=6)
    assert torch.equal(found, merged)


def test_loading_is_quiet(tmp_path, caplog):
    tiny_model().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        AutoModel.from_pretrained(tmp_path)
        SamForConditionalGeneration(SamConfig.from_pretrained(tmp_path))
    assert not caplog.records


def test_labels_need_all_logits():
    model, inputs = tiny_model(), tiny_inputs()
    with pytest.raises(ValueError, match="labels and logits_to_keep"):
        model(**inputs, labels=inputs["input_ids"], logits_to_keep=1)


# -- The loss alone -----------------------------------------------------------------------------------------------


def answers_only(inputs, *lengths):
    """Labels on the last `lengths` tokens of the rows."""
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, length in enumerate(lengths):
        labels[row, labels.shape[1] - length :] = inputs["input_ids"][row, labels.shape[1] - length :]
    return labels


def test_labels_are_found_by_hand():
    labels = torch.tensor([[5, -100, 7, 8], [-100, -100, -100, -100], [9, -100, -100, 1]])
    # row 0 predicts positions 2 and 3, row 2 position 3; the first position is never predicted
    assert positions_with_loss(labels).tolist() == [1, 2, 10]


@pytest.mark.parametrize("number", [None, 9, "tensor"])
@pytest.mark.parametrize("case", ["plain", "packed", "checkpointed", "adapters", "text"])
def test_the_loss_alone_equals_the_loss_of_all_logits(case, number):
    model = with_lora(tiny_model()) if case == "adapters" else tiny_model()
    model.train()
    if case == "packed":
        inputs = packed_and_apart()[0]
        labels = inputs.pop("labels")
    else:
        inputs = tiny_inputs(("What do you hear?", "Which?"), clips=0 if case == "text" else 1)
        labels = answers_only(inputs, 9, 2)
    if case == "checkpointed":
        checkpointed(model)
    kwargs = {} if number is None else {"num_items_in_batch": torch.tensor(9) if number == "tensor" else number}
    expected = gradients(model, **inputs, labels=labels, **kwargs)
    rows = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[:-1].numel()))
    model.zero_grad()
    found = gradients(model, **inputs, labels=labels, loss_positions=positions_with_loss(labels), **kwargs)
    assert rows == [int((labels[:, 1:] != -100).sum())]
    torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=1e-6)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in found[1].items():
        torch.testing.assert_close(
            gradient, expected[1][name], atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("number", [None, 1])
def test_the_loss_alone_of_a_batch_without_labels_is_zero_with_gradients(number):
    model, inputs = tiny_model().train(), tiny_inputs(("What do you hear?", "Which?"))
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, 0] = 5  # no position predicts the first one
    positions = positions_with_loss(labels)
    loss, found = gradients(model, **inputs, labels=labels, loss_positions=positions, num_items_in_batch=number)
    assert loss.item() == 0.0
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(not gradient.any() for gradient in found.values())


def test_the_loss_alone_under_autocast_and_as_a_tuple():
    model, inputs = tiny_model().train(), tiny_inputs(("What do you hear?", "Which?"))
    labels = answers_only(inputs, 9, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(**inputs, labels=labels).loss
        inputs.update(labels=labels, loss_positions=positions_with_loss(labels))
        found = model(**inputs)
        alone, *_ = model(**inputs, return_dict=False)
    assert found.logits is None and found.loss.dtype == torch.float32
    torch.testing.assert_close(found.loss, expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(found.loss, alone)


def test_positions_of_the_loss_need_labels_and_exclude_logits_to_keep():
    model, inputs = tiny_model(), tiny_inputs()
    labels = inputs["input_ids"]
    inputs["loss_positions"] = positions_with_loss(labels)
    with pytest.raises(ValueError, match="loss_positions: got positions without labels"):
        model(**inputs)
    for keep in (1, torch.tensor([2])):
        with pytest.raises(ValueError, match=r"loss_positions and logits_to_keep: got both"):
            model(**inputs, labels=labels, logits_to_keep=keep)
