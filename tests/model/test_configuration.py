"""The configuration: the paper's sizes, saving and loading, errors."""

import copy
import json
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_config
from transformers import AutoConfig, Mamba2Config

from configuration_sam import AUTO_MAP, SamAudioConfig, SamConfig, audio_slot_pattern, mamba2_config
from hub_sam import model_card, write_model_card
from modeling_sam import SamForConditionalGeneration

LORA_TARGETS = r".*language_model\.layers\.\d+\.mixer\.(in_proj|out_proj)"

# Counted from the published checkpoints' tensors (language models tied, EAT without its pre-training decoder).
LANGUAGE_MODEL_PARAMETERS = {"130m": 128_989_632, "780m": 780_161_280, "2.7b": 2_702_599_680}
ENCODER_PARAMETERS = 85_254_144
LORA_PARAMETERS = {
    "130m": {8: 1_233_408, 256: 39_469_056},
    "780m": {8: 4_835_328, 256: 154_730_496},
    "2.7b": {8: 10_657_792, 256: 341_049_344},
}


def on_meta(size, connector="concatenation"):
    with torch.device("meta"):
        return SamForConditionalGeneration(SamConfig.from_preset(size, connector))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


# -- Presets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", LANGUAGE_MODEL_PARAMETERS)
def test_presets_have_the_published_sizes(size):
    model = on_meta(size)
    assert count(model.model.language_model) == LANGUAGE_MODEL_PARAMETERS[size]
    assert count(model.model.audio_tower) == ENCODER_PARAMETERS
    width = model.config.text_config.hidden_size
    assert count(model.model.connector) == (8 * 768 * width + width) + (width * width + width)
    assert model.lm_head.weight is model.model.language_model.embeddings.weight
    assert count(model) == sum(count(part) for part in model.model.children())


@pytest.mark.slow
@pytest.mark.parametrize("size", LORA_PARAMETERS)
@pytest.mark.parametrize("rank", [8, 256])
def test_lora_on_the_presets_has_the_counts_of_the_papers_ranks(size, rank):
    model = get_peft_model(on_meta(size), LoraConfig(r=rank, target_modules=LORA_TARGETS))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == LORA_PARAMETERS[size][rank]


@pytest.mark.parametrize(
    ("size", "layers", "width", "heads", "in_proj", "channels"),
    [("130m", 24, 768, 24, 3352, 1792), ("780m", 48, 1536, 48, 6448, 3328), ("2.7b", 64, 2560, 80, 10576, 5376)],
)
def test_layers_of_the_presets(size, layers, width, heads, in_proj, channels):
    model = on_meta(size)
    assert len(model.model.language_model.layers) == layers
    mixer = model.model.language_model.layers[0].mixer
    assert mixer.in_proj.weight.shape == (in_proj, width)
    assert mixer.conv1d.weight.shape == (channels, 1, 4)
    assert mixer.A_log.shape == (heads,)
    assert model.model.language_model.embeddings.weight.shape == (50288, width)


@pytest.mark.parametrize("size", LANGUAGE_MODEL_PARAMETERS)
def test_presets_avoid_the_defaults_of_mamba2_config(size):
    text = SamConfig.from_preset(size).text_config
    assert (text.n_groups, text.state_size, text.head_dim, text.conv_kernel, text.expand) == (1, 128, 64, 4, 2)
    assert (text.pad_token_id, text.bos_token_id, text.eos_token_id) == (0, 0, 0)
    assert text.tie_word_embeddings and text.residual_in_fp32 and not text.use_bias and text.use_conv_bias
    assert text.layer_norm_epsilon == 1e-5


def test_token_ids_of_the_presets_fit_gpt_neox():
    config = SamConfig.from_preset("780m", "time_major")
    assert config.separator_token_id == 10494  # `&&`
    assert 50277 <= config.audio_token_id < 50288  # a row that no text uses


@pytest.mark.parametrize("connector", ["time_major", "frequency_major"])
def test_connectors_with_separators_take_one_patch_at_a_time(connector):
    width = 768
    assert count(on_meta("130m", connector).model.connector) == 2 * (width * width + width)


def test_connector_hidden_size_is_the_hidden_layer_of_the_connector():
    with torch.device("meta"):
        connector = SamForConditionalGeneration(SamConfig(connector_hidden_size=100)).model.connector
    assert connector.linear_1.weight.shape == (100, 6144)
    assert connector.linear_2.weight.shape == (768, 100)


# -- Slots --------------------------------------------------------------------------------------------------------


def test_concatenation_has_64_slots():
    assert audio_slot_pattern("concatenation") == [True] * 64


def test_time_major_has_a_separator_behind_every_time_step():
    pattern = audio_slot_pattern("time_major")
    assert len(pattern) == 576
    assert [place for place, audio in enumerate(pattern) if not audio] == list(range(8, 576, 9))


def test_frequency_major_has_a_separator_behind_every_band():
    pattern = audio_slot_pattern("frequency_major")
    assert len(pattern) == 520
    assert [place for place, audio in enumerate(pattern) if not audio] == list(range(64, 520, 65))


@pytest.mark.parametrize(
    ("connector", "slots", "features"),
    [("concatenation", 64, 64), ("time_major", 576, 512), ("frequency_major", 520, 512)],
)
def test_slots_and_features_of_a_configuration(connector, slots, features):
    config = SamConfig(connector=connector)
    assert (config.num_audio_slots, config.num_audio_features) == (slots, features)
    assert config.audio_slot_pattern == audio_slot_pattern(connector)


def test_slots_follow_the_encoders_sizes():
    audio = SamAudioConfig(max_frames=512, num_mel_bins=64)
    assert SamConfig(audio_config=audio).num_audio_slots == 32
    assert SamConfig(audio_config=audio, connector="time_major").num_audio_slots == 32 * 5
    assert SamConfig(audio_config=audio, connector="frequency_major").num_audio_slots == 4 * 33


# -- JSON ---------------------------------------------------------------------------------------------------------


def no_constant(name):
    raise AssertionError(f"{name} is not JSON")


LARGEST = 3.4028234663852886e38  # saved for no upper limit next to a lower one


@pytest.mark.parametrize(
    ("limit", "read"),
    [
        ((0.0, math.inf), (0.0, math.inf)),
        ((0.01, math.inf), (0.01, LARGEST)),
        ((0.001, 0.1), (0.001, 0.1)),
        ((0.0, 3.0), (0.0, 3.0)),
    ],
)
def test_json_has_no_infinity_and_gives_the_configuration_back(tmp_path, limit, read):
    config = SamConfig(
        audio_config=SamAudioConfig(hidden_size=192, num_attention_heads=3, layer_norm_eps=1e-5),
        text_config=mamba2_config("780m", time_step_limit=limit, chunk_size=64),
        connector="frequency_major",
        connector_hidden_size=7,
        audio_token_id=50280,
        separator_token_id=10494,
        base_models=["someone/eat", "someone/mamba2"],
        license="apache-2.0",
    )
    config.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    json.loads(text, parse_constant=no_constant)
    for written in (text, config.to_json_string(), config.to_json_string(use_diff=False)):
        assert "Infinity" not in written

    loaded = SamConfig.from_pretrained(tmp_path)
    assert isinstance(loaded.audio_config, SamAudioConfig) and isinstance(loaded.text_config, Mamba2Config)
    assert loaded.to_dict() == config.to_dict()
    assert tuple(loaded.text_config.time_step_limit) == read
    assert loaded.connector_hidden_size == 7 and loaded.text_config.hidden_size == 1536
    assert loaded.audio_config.layer_norm_eps == 1e-5 and loaded.base_models == ["someone/eat", "someone/mamba2"]


def test_writing_leaves_the_configuration_itself_alone():
    config = SamConfig()
    config.to_dict(), config.to_json_string()
    assert tuple(config.text_config.time_step_limit) == (0.0, math.inf)


def test_sub_configurations_may_be_dicts():
    config = SamConfig(
        audio_config={"hidden_size": 96, "num_attention_heads": 4},
        text_config=mamba2_config("130m", num_hidden_layers=3).to_dict(),
    )
    assert isinstance(config.audio_config, SamAudioConfig) and config.audio_config.hidden_size == 96
    assert isinstance(config.text_config, Mamba2Config) and config.text_config.num_hidden_layers == 3
    assert config.text_config.n_groups == 1


def test_auto_config_reads_what_was_saved(tmp_path):
    tiny_config("time_major").save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is SamConfig
    assert config.to_dict() == {**tiny_config("time_major").to_dict(), "_name_or_path": config._name_or_path}


def test_copies_share_nothing():
    config = tiny_config()
    other = copy.deepcopy(config)
    other.text_config.eos_token_id = 5
    other.audio_config.hidden_size = 64
    other.auto_map["AutoModel"] = "elsewhere.Model"
    assert config.text_config.eos_token_id == 0 and config.audio_config.hidden_size == 32
    assert config.auto_map["AutoModel"] == AUTO_MAP["AutoModel"] == "modeling_sam.SamForConditionalGeneration"


def test_auto_map_names_every_auto_class(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "sam_alm"
    assert saved["auto_map"] == {
        "AutoConfig": "configuration_sam.SamConfig",
        "AutoModel": "modeling_sam.SamForConditionalGeneration",
        "AutoModelForCausalLM": "modeling_sam.SamForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_sam.SamForConditionalGeneration",
        "AutoFeatureExtractor": "audio_sam.SamFeatureExtractor",
        "AutoProcessor": "processing_sam.SamAudioLanguageProcessor",
    }


def test_token_ids_at_the_top_are_the_language_models():
    config = SamConfig(eos_token_id=7, bos_token_id=5, pad_token_id=6, tie_word_embeddings=False)
    text = config.text_config
    assert (config.eos_token_id, config.bos_token_id, config.pad_token_id) == (7, 5, 6)
    assert (text.eos_token_id, text.bos_token_id, text.pad_token_id) == (7, 5, 6)
    assert config.tie_word_embeddings is text.tie_word_embeddings is False
    assert SamConfig(text_config=mamba2_config(eos_token_id=9)).eos_token_id == 9


def test_several_ends_of_text_are_possible():
    assert SamConfig(eos_token_id=[0, 3]).text_config.eos_token_id == [0, 3]


# -- Refused ------------------------------------------------------------------------------------------------------


def text_dict(**changes):
    return {**mamba2_config().to_dict(), **changes}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"connector": "concat"}, ["connector", "'concat'", "concatenation, time_major, frequency_major"]),
        ({"connector": None}, ["connector", "None"]),
        ({"audio_config": {"hidden_size": 770}}, ["audio_config.hidden_size", "770", "num_attention_heads"]),
        ({"audio_config": {"hidden_size": 54, "num_attention_heads": 1}}, ["audio_config.hidden_size", "54", "four"]),
        ({"audio_config": {"hidden_size": "768"}}, ["audio_config.hidden_size", "'768'"]),
        ({"audio_config": {"patch_size": 0}}, ["audio_config.patch_size", "0"]),
        ({"audio_config": {"max_frames": 1000}}, ["audio_config.max_frames", "1000", "patch_size"]),
        ({"audio_config": {"num_mel_bins": 100}}, ["audio_config.num_mel_bins", "100", "patch_size"]),
        ({"audio_config": mamba2_config()}, ["audio_config", "Mamba2Config", "SamAudioConfig"]),
        ({"audio_config": {"model_type": "mamba2"}}, ["audio_config", "'mamba2'", "'sam_alm_audio_encoder'"]),
        ({"text_config": SamAudioConfig()}, ["text_config", "SamAudioConfig", "Mamba2Config"]),
        ({"text_config": {"model_type": "llama"}}, ["text_config", "'llama'", "'mamba2'"]),
        ({"text_config": "130m"}, ["text_config", "str", "Mamba2Config"]),
        ({"text_config": text_dict(num_heads=23)}, ["text_config", "num_heads", "1472", "1536"]),
        ({"text_config": text_dict(hidden_size="768")}, ["text_config", "hidden_size", "'768'"]),
        ({"text_config": text_dict(n_groups=5)}, ["text_config.num_heads", "24", "n_groups", "5"]),
        ({"text_config": text_dict(hidden_act="gelu")}, ["text_config.hidden_act", "'gelu'", "'silu'"]),
        ({"text_config": text_dict(eos_token_id=50288)}, ["text_config.eos_token_id", "50288", "50287"]),
        ({"text_config": text_dict(time_step_limit=[1])}, ["text_config", "time_step_limit"]),
        ({"connector_hidden_size": 0}, ["connector_hidden_size", "0"]),
        ({"connector_hidden_size": 1.5}, ["connector_hidden_size", "1.5"]),
        ({"audio_token_id": 50288}, ["audio_token_id", "50288", "50287"]),
        ({"audio_token_id": -1}, ["audio_token_id", "-1"]),
        ({"audio_token_id": "<|audio|>"}, ["audio_token_id", "'<|audio|>'"]),
        ({"audio_token_id": True}, ["audio_token_id", "True"]),
        ({"audio_token_id": [258, 259]}, ["audio_token_id", "[258, 259]"]),
        ({"separator_token_id": 50288}, ["separator_token_id", "50288"]),
        ({"separator_token_id": [257]}, ["separator_token_id", "[257]"]),
        ({"audio_token_id": 5, "separator_token_id": 5}, ["audio_token_id", "separator_token_id", "5"]),
        ({"eos_token_id": 50288}, ["eos_token_id", "50288", "50287"]),
        ({"eos_token_id": [0, 99999]}, ["eos_token_id", "99999"]),
        ({"eos_token_id": "</s>"}, ["eos_token_id", "'</s>'"]),
        ({"pad_token_id": -1}, ["pad_token_id", "-1"]),
        ({"bos_token_id": 1.5}, ["bos_token_id", "1.5"]),
    ],
    ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, list) else None,
)
def test_what_does_not_fit_is_refused_by_name(arguments, words):
    with pytest.raises(ValueError) as error:
        SamConfig(**arguments)
    for word in words:
        assert word in str(error.value)


def test_unknown_size_and_unknown_connector_of_a_preset():
    with pytest.raises(ValueError, match=r"size: got '3b'.*130m, 780m, 2\.7b"):
        SamConfig.from_preset("3b")
    with pytest.raises(ValueError, match="connector: got 'mlp'"):
        SamConfig.from_preset("130m", "mlp")
    with pytest.raises(ValueError, match="connector: got 'mlp'"):
        audio_slot_pattern("mlp")


def test_a_bad_field_in_a_file_is_refused_when_it_is_read(tmp_path):
    SamConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "connector": "mlp"}))
    with pytest.raises(ValueError, match="connector: got 'mlp'"):
        AutoConfig.from_pretrained(tmp_path)


# -- Card ---------------------------------------------------------------------------------------------------------


def test_model_card_says_what_the_configuration_tells(tmp_path):
    config = tiny_config("time_major")
    config.license, config.base_models = "apache-2.0", ["someone/eat", "someone/mamba2"]
    header, body = model_card(config, "someone/sam").split("---\n")[1:3]
    assert "pipeline_tag: audio-text-to-text\n" in header and "library_name: transformers\n" in header
    assert "license: apache-2.0\n" in header and "- someone/eat\n- someone/mamba2\n" in header
    assert "576 audio positions" in body and 'from_pretrained("someone/sam"' in body
    assert "license" not in model_card(tiny_config(), "x").split("---\n")[1]

    (tmp_path / "README.md").write_text("mine")
    write_model_card(config, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_card_named_after_its_folder_takes_the_repositorys_name(tmp_path):
    config, path = tiny_config(), tmp_path / "README.md"
    write_model_card(config, tmp_path)
    assert f"# {tmp_path.name}\n" in path.read_text()
    write_model_card(config, tmp_path, name="someone/sam")
    assert "# someone/sam\n" in path.read_text() and 'from_pretrained("someone/sam"' in path.read_text()
    for own in (path.read_bytes() + b"Mine.\n", b"\xff mine"):  # edited; not even UTF-8
        path.write_bytes(own)
        write_model_card(config, tmp_path, name="someone/sam")
        assert path.read_bytes() == own


def test_a_callers_sub_configuration_stays_as_it_is():
    text_config = mamba2_config("130m")
    assert SamConfig(text_config=text_config, eos_token_id=7).text_config.eos_token_id == 7
    assert text_config.eos_token_id == 0


def test_base_models_are_a_list():
    with pytest.raises(ValueError, match="base_models: got 'a/b'"):
        SamConfig(base_models="a/b")
