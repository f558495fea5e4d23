"""Published weights to one SAM directory: what is read, what is refused, and that nothing is changed on the way."""

import argparse
import collections
import enum
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import textwrap
import types
import typing

import numpy as np
import pytest
import soundfile
import torch
from loopback_hub import LoopbackHub
from safetensors.torch import save_file
from shared import NEOX, needs
from tiny import tiny_tokenizer
from torch.nn import functional as F
from transformers import AutoTokenizer, Mamba2Config, Mamba2ForCausalLM

from chat_sam import CHAT_TEMPLATE
from configuration_sam import SamAudioConfig
from modeling_sam import SamAudioModel, SamForConditionalGeneration
from processing_sam import SamFeatureExtractor, SamProcessor
from sam_lab.conversion import convert, convert_audio_encoder, convert_language_model, read_audio_encoder

ROOT = pathlib.Path(__file__).resolve().parents[1]
WIDTH, DEPTH = 128, 2
IMAGE = "modality_encoders.IMAGE."


# -- EAT, written down a second time from its description, with fairseq's names -----------------------------------


def eat_weights(width=WIDTH, depth=DEPTH, seed=0):
    """Random weights of a pre-trained EAT under fairseq's names, without what SAM does not use."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, around=0.0):
        return around + 0.1 * torch.randn(*shape, generator=generator)

    weights = {
        IMAGE + "extra_tokens": draw(1, 1, width),
        IMAGE + "local_encoder.proj.weight": draw(width, 1, 16, 16),
        IMAGE + "local_encoder.proj.bias": draw(width),
        IMAGE + "context_encoder.norm.weight": draw(width, around=1.0),
        IMAGE + "context_encoder.norm.bias": draw(width),
    }
    for block in range(depth):
        shapes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        shapes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width), "norm1": (width,), "norm2": (width,)}
        for name, shape in shapes.items():
            weights[f"blocks.{block}.{name}.weight"] = draw(*shape, around=float(len(shape) == 1))
            weights[f"blocks.{block}.{name}.bias"] = draw(shape[0])
    return weights


def eat_cfg(heads=2, width=WIDTH, image=(), task=(), **model):
    """The configuration that EAT's code stores beside the weights, with its classes' defaults."""
    encoder = {"in_chans": 1, "patch_size": 16, "embed_dim": width, "prenet_depth": 0, "num_extra_tokens": 1}
    encoder |= {"use_alibi_encoder": False, "fixed_positions": True, "target_length": 1024, "model_depth": DEPTH}
    encoder |= {"decoder": {"decoder_dim": 768, "decoder_layers": 6}, "mask_prob": 0.8, **dict(image)}
    fields = {"_name": "data2vec_multi", "depth": DEPTH, "num_heads": heads, "embed_dim": width, "mlp_ratio": 4}
    fields |= {"norm_eps": 1e-6, "norm_affine": True, "layer_norm_first": False, "end_of_block_targets": False}
    fields |= {"supported_modality": "IMAGE", "shared_decoder": None, "encoder_dropout": 0.1, **model}
    return {"model": {**fields, "modalities": {"image": encoder}}, "task": {"target_length": 1024, **dict(task)}}


def eat_positions(width):
    """[512, width]: the first half of the dimensions tells the band, the second the time; sines, then cosines."""
    frequencies = np.float64(10000.0) ** (-np.arange(width // 4) / (width // 4))
    rows = []
    for time in range(64):
        for band in range(8):
            angles = [position * frequencies for position in (band, time)]
            rows.append(np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)]))
    return torch.tensor(np.stack(rows)).float()


def naive_eat(weights, spectrogram, heads, eps=1e-6):
    """EAT's forward pass, [B, 1024, 128] -> [B, 513, width], CLS first. Post-norm, no final norm."""
    width = weights[IMAGE + "extra_tokens"].shape[-1]

    def norm(x, name):
        return F.layer_norm(x, (width,), weights[name + ".weight"], weights[name + ".bias"], eps=eps)

    def linear(x, name):
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]

    kernel, bias = (weights[IMAGE + "local_encoder.proj." + part] for part in ("weight", "bias"))
    patches = torch.stack(
        [
            torch.einsum("bij,wij->bw", spectrogram[:, 16 * t : 16 * t + 16, 16 * f : 16 * f + 16], kernel[:, 0])
            + bias
            for t in range(spectrogram.shape[1] // 16)
            for f in range(8)
        ],
        dim=1,
    )
    x = patches + eat_positions(width)[: patches.shape[1]]
    x = torch.cat([weights[IMAGE + "extra_tokens"].expand(len(x), -1, -1), x], dim=1)
    x = norm(x, IMAGE + "context_encoder.norm")
    for block in range(sum(name.endswith("norm1.weight") for name in weights)):
        name = f"blocks.{block}."
        qkv = linear(x, name + "attn.qkv").unflatten(-1, (3, heads, -1))  # [B, N, 3, heads, 64]
        heads_out = []
        for head in range(heads):
            q, k, v = qkv[:, :, :, head].unbind(2)
            scores = q @ k.transpose(1, 2) / np.sqrt(width // heads)
            heads_out.append(torch.softmax(scores, dim=-1) @ v)
        x = norm(x + linear(torch.cat(heads_out, dim=-1), name + "attn.proj"), name + "norm1")
        hidden = linear(x, name + "mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / np.sqrt(2)))
        x = norm(x + linear(hidden, name + "mlp.fc2"), name + "norm2")
    return x


def extras(width=WIDTH):
    """What the published files hold and SAM does not use."""
    return {
        IMAGE + "fixed_positional_encoder.positions": torch.zeros(1, 512, width),
        IMAGE + "decoder.blocks.0.0.weight": torch.zeros(width, width // 16, 3, 3),
        IMAGE + "decoder.proj.bias": torch.zeros(width),
    }


def finetuned(weights):
    """The same under the names of a fine-tuned checkpoint, with its classifier."""
    head = {"fc_norm.weight": torch.ones(WIDTH), "head.weight": torch.zeros(527, WIDTH), "head.bias": torch.zeros(527)}
    return {f"model.{name}": value for name, value in weights.items()} | head


def port(weights):
    """The same under the names of the Hugging Face port."""
    renamed = {name.replace("context_encoder.norm", "pre_norm"): value for name, value in weights.items()}
    return {f"model.{name.removeprefix(IMAGE)}": value.clone() for name, value in renamed.items()}


def pretrained_file(path, weights=None, **beside):
    weights = eat_weights() if weights is None else weights
    model = weights | extras() | {"_ema": {"blocks.0.norm1.weight": torch.zeros(WIDTH)}}
    torch.save({"cfg": eat_cfg(), "model": model} | beside, path)
    return path


@pytest.fixture(scope="module")
def eat_truth():
    spectrogram = torch.randn(1, 1024, 128, generator=torch.Generator().manual_seed(1))
    return spectrogram, naive_eat(eat_weights(), spectrogram, heads=2)[:, 1:]


@pytest.mark.parametrize("layout", ["pretrained", "finetuned", "old format", "port", "port directory", "argument"])
def test_audio_encoder_equals_eat(tmp_path, eat_truth, layout):
    path = tmp_path / "eat.pt"
    if layout == "pretrained":
        pretrained_file(path)
    elif layout in ("finetuned", "old format"):
        cfg = {"model": {"_name": "mae_image_classification", "pretrained_model_args": eat_cfg(), "norm_eps": None}}
        checkpoint = {"args": None, "cfg": cfg, "model": finetuned(eat_weights() | extras())}
        torch.save(checkpoint, path, _use_new_zipfile_serialization=layout == "finetuned")
    else:
        path = tmp_path / "model.safetensors"
        save_file(
            port(eat_weights() | {IMAGE + "fixed_positional_encoder.positions": torch.zeros(1, 6144, WIDTH)}), path
        )
        if layout != "argument":
            (tmp_path / "config.json").write_text(json.dumps({"model_type": "eat", "num_heads": 2, "norm_eps": 1e-6}))
        if layout == "port directory":
            path = tmp_path
    config, weights = convert_audio_encoder(path, 2 if layout == "argument" else None)
    expected = SamAudioConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512)
    assert config.to_dict() == expected.to_dict()
    model = SamAudioModel(config).eval()
    model.load_state_dict(weights, strict=True)
    spectrogram, truth = eat_truth
    with torch.no_grad():
        output = model(spectrogram).last_hidden_state
    assert truth.std() > 0.5
    assert (output - truth).abs().max() < 3e-5


def test_depth_and_width_come_from_the_tensors_and_heads_from_the_port(tmp_path):
    save_file(port(eat_weights(width=192, depth=3)), tmp_path / "model.safetensors")
    config, _ = convert_audio_encoder(tmp_path / "model.safetensors", num_heads=3)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (192, 3, 3)
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 6}))
    assert convert_audio_encoder(tmp_path)[0].num_attention_heads == 6


def as_namespace(value):
    return argparse.Namespace(**{k: as_namespace(v) for k, v in value.items()}) if isinstance(value, dict) else value


def flat_namespace(cfg):
    """fairseq's older form: the fields of the model and those of the task side by side."""
    return as_namespace(cfg["task"] | {"task": "mae_image_pretraining", "arch": "data2vec_multi"} | cfg["model"])


def as_omegaconf(cfg):
    """By the real package, with a reference and an enumeration as in EAT's own files."""
    from omegaconf import OmegaConf

    cfg["model"]["modalities"]["image"]["num_alibi_heads"] = "${model.num_heads}"
    cfg["model"]["modalities"]["image"]["embed_dim"] = "${model.embed_dim}"
    return OmegaConf.create(cfg)


@pytest.fixture(scope="module")
def narrow_truth():
    """An encoder of width 96 with 4 heads and another epsilon: neither can be told from the tensors."""
    spectrogram = torch.randn(1, 1024, 128, generator=torch.Generator().manual_seed(1))
    return spectrogram, naive_eat(eat_weights(width=96), spectrogram, heads=4, eps=1e-3)[:, 1:]


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize(
    "form", ["dict", "omegaconf", "namespace in cfg", "namespace", "fine-tuned", "w2v_args", "numpy"]
)
def test_heads_and_epsilon_are_those_of_the_files_own_configuration(tmp_path, narrow_truth, form, archive):
    cfg = eat_cfg(heads=4, width=96, norm_eps="1e-3" if form == "dict" else 1e-3)  # YAML reads 1e-3 as a text
    weights = eat_weights(width=96)
    beside = {"args": None, "cfg": cfg}
    if form == "omegaconf":
        beside["cfg"] = as_omegaconf(cfg)
    elif form == "namespace in cfg":
        beside["cfg"] = {"model": as_namespace(cfg["model"])}
    elif form == "namespace":
        beside = {"args": flat_namespace(cfg), "cfg": None}
    elif form == "numpy":
        cfg["model"] |= {"num_heads": np.int64(4), "norm_eps": np.float64(1e-3)}
    elif form in ("fine-tuned", "w2v_args"):
        name = "w2v_args" if form == "w2v_args" else "pretrained_model_args"
        outer = {"_name": "mae_image_classification", "norm_eps": None, "target_length": 1024, name: cfg}
        beside["cfg"] = as_omegaconf(
            {"model": {**outer, "modalities": {"image": {}}, "embed_dim": 96, "num_heads": 4}}
        )
        if form == "w2v_args":
            beside["cfg"] = {"model": as_namespace(outer)}
        weights = {f"model.{name}": value for name, value in weights.items()}
    torch.save({"model": weights, **beside}, tmp_path / "eat.pt", _use_new_zipfile_serialization=archive)
    config, tensors = convert_audio_encoder(tmp_path / "eat.pt")
    assert (config.num_attention_heads, config.layer_norm_eps, config.max_frames) == (4, 1e-3, 1024)
    model = SamAudioModel(config).eval()
    model.load_state_dict(tensors, strict=True)
    spectrogram, truth = narrow_truth
    with torch.no_grad():
        assert (model(spectrogram).last_hidden_state - truth).abs().max() < 3e-5


def test_a_shorter_spectrogram_is_read_from_the_file_and_its_positions_are_ours(tmp_path, sources):
    """Fine-tuned on ESC-50: 5 s of sound, and another normalisation, which the feature extractor must have."""
    weights = finetuned(eat_weights()) | {
        f"model.{IMAGE}fixed_positional_encoder.positions": eat_positions(WIDTH)[None, :256]
    }
    before = eat_cfg(image={"target_length": 512})
    model = {"pretrained_model_args": before, "target_length": 512, "esc50_eval": True}
    cfg = {"model": model, "task": {"target_length": 512, "esc50_eval": True}}
    torch.save({"cfg": cfg, "model": weights}, tmp_path / "eat.pt")
    encoder = read_audio_encoder(tmp_path / "eat.pt")
    assert (encoder.config.max_frames, encoder.mean, encoder.std) == (512, -6.627, 5.359)
    assert encoder.notes == []

    sources["audio_encoder"] = tmp_path / "eat.pt"
    convert(**sources, output=tmp_path / "sam")
    processor, model = (part.from_pretrained(tmp_path / "sam") for part in (SamProcessor, SamForConditionalGeneration))
    sound = np.random.default_rng(0).normal(size=80000).astype(np.float32) / 8
    features = processor.feature_extractor(sound, 16000, return_tensors="pt")["input_features"]
    plain = SamFeatureExtractor()(sound, 16000, return_tensors="pt")["input_features"][:, :512]
    assert (features - (plain * 9.138 - 4.268 + 6.627) / 10.718).abs().max() < 1e-5
    truth = naive_eat(eat_weights(), features, heads=2)[:, 1:]
    with torch.no_grad():
        assert (model.model.audio_tower(features).last_hidden_state - truth).abs().max() < 3e-5
    inputs = processor(text="What?", audio=sound, sampling_rate=16000, return_tensors="pt")
    assert inputs["input_ids"].eq(processor.audio_token_id).sum() == 32
    model.generate(**inputs, max_new_tokens=1)


LAYOUTS = {
    "pre-norm": ({"layer_norm_first": True}, "cfg.model.layer_norm_first is True, only False is supported"),
    "no affine": ({"norm_affine": False}, "cfg.model.norm_affine is False"),
    "activation": ({"activation_fn": "relu"}, "cfg.model.activation_fn is 'relu', only 'gelu'"),
    "ALiBi": ({"image": {"use_alibi_encoder": True}}, "modalities.image.use_alibi_encoder is True"),
    "positions": ({"image": {"fixed_positions": False}}, "image.fixed_positions is False, only True"),
    "tokens": ({"image": {"num_extra_tokens": 2}}, "image.num_extra_tokens is 2, only 1"),
    "prenet": ({"image": {"prenet_depth": 4}}, "image.prenet_depth is 4, only 0"),
    "channels": ({"image": {"in_chans": 3}}, "image.in_chans is 3, only 1"),
    "patch": ({"image": {"patch_size": 8}}, "image.patch_size is 8, but by the tensors it is 16"),
    "depth": ({"depth": 12}, "cfg.model.depth is 12, but by the tensors it is 2"),
    "width": ({"embed_dim": 768}, "cfg.model.embed_dim is 768, but by the tensors it is 128"),
    "ratio": ({"mlp_ratio": 2}, "cfg.model.mlp_ratio is 2, but by the tensors it is 4"),
    "modality": ({"supported_modality": "AUDIO"}, "supported_modality is 'AUDIO', only IMAGE"),
    "length": ({"image": {"target_length": 1000}}, "max_frames: got 1000, expected a multiple of patch_size (16)"),
    "task": ({"task": {"target_length": 512}}, "cfg.task.target_length is 512"),
    "statistics": ({"task": {"esc50_eval": True, "spcv2_eval": True}}, "are both true, expected one"),
    "divisor": ({"heads": 5}, "hidden_size: got 128, expected a multiple of num_attention_heads (5)"),
    "no number": ({"heads": "many"}, "cfg.model.num_heads is 'many', expected a positive number"),
    "reference": ({"heads": "${oc.env:HEADS}"}, "num_heads is '${oc.env:HEADS}', expected a positive number"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_the_encoder_does_not_have_are_refused(tmp_path, layout):
    changes, message = LAYOUTS[layout]
    with pytest.raises(ValueError) as error:
        convert_audio_encoder(pretrained_file(tmp_path / "eat.pt", cfg=eat_cfg(**changes)))
    assert message in str(error.value)


def test_all_reasons_are_in_one_message_and_the_argument_must_agree(tmp_path):
    weights = eat_weights()
    del weights["blocks.1.norm2.bias"]
    cfg = eat_cfg(layer_norm_first=True, image={"num_extra_tokens": 0})
    path = pretrained_file(tmp_path / "eat.pt", weights, cfg=cfg, args=argparse.Namespace(num_heads=8))
    with pytest.raises(ValueError, match="4 reasons") as error:
        convert_audio_encoder(path)
    for line in ("layer_norm_first", "num_extra_tokens", "missing: blocks.1.norm2.bias"):
        assert line in str(error.value)
    assert "cfg.model.num_heads is 2 but args.num_heads is 8" in str(error.value)
    path = pretrained_file(tmp_path / "eat.pt")
    assert convert_audio_encoder(path, num_heads=2)[0].num_attention_heads == 2
    with pytest.raises(ValueError, match=r"cfg.model.num_heads is 2 but num_heads, the argument is 4"):
        convert_audio_encoder(path, num_heads=4)


def test_heads_that_no_file_says_are_an_argument_and_no_guess(tmp_path, sources, capsys):
    torch.save({"model": eat_weights()}, tmp_path / "eat.pt")
    with pytest.raises(ValueError, match=r"num_heads is not in the file's cfg or args.*--audio-encoder-heads N"):
        convert_audio_encoder(tmp_path / "eat.pt")
    report = convert(
        **(sources | {"audio_encoder": tmp_path / "eat.pt"}), output=tmp_path / "sam", audio_encoder_heads=4
    )
    assert SamForConditionalGeneration.from_pretrained(tmp_path / "sam").config.audio_config.num_attention_heads == 4
    assert "layer_norm_eps: 1e-06, as in EAT's code, since the file does not say it" in str(report)


def test_positions_that_were_learned_or_are_in_another_order_are_refused(tmp_path):
    ours = eat_positions(WIDTH)[None]
    name = IMAGE + "fixed_positional_encoder.positions"
    torch.save({"cfg": eat_cfg(), "model": eat_weights() | {name: ours.half()}}, tmp_path / "eat.pt")
    convert_audio_encoder(tmp_path / "eat.pt")
    other = ours.unflatten(1, (64, 8)).transpose(1, 2).flatten(1, 2)  # time fastest
    for positions, message in (
        (other, "differs by"),
        (ours[:, :100], r"is \[1, 100, 128\], expected \[1, 512 or more"),
    ):
        torch.save({"cfg": eat_cfg(), "model": eat_weights() | {name: positions}}, tmp_path / "eat.pt")
        with pytest.raises(ValueError, match=message):
            convert_audio_encoder(tmp_path / "eat.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_norm_first": True}, "config.json: layer_norm_first is True, only False"),
        ({"stride": 10}, "config.json: stride is 10, but by the tensors it is 16"),
        ({"qkv_bias": False}, "config.json: qkv_bias is False, only True"),
        ({"fixed_positions": False}, "config.json: fixed_positions is False"),
        ({"img_size": [1024, 64]}, "config.json: mel_bins is 128 but config.json: img_size.mel_bins is 64"),
        ({"depth": 12}, "config.json: depth is 12, but by the tensors it is 2"),
        ({"rope_theta": 10000}, "config.json: rope_theta is 10000, a field that EAT does not have"),
        ({"model_type": "vit"}, "config.json has model_type 'vit', expected 'eat'"),
        ({"num_heads": None}, "num_heads is not in the file's cfg or args"),
    ],
)
def test_every_field_of_the_port_is_read_or_refused(tmp_path, changes, message):
    """The fields of the published config.json."""
    fields = {"model_type": "eat", "embed_dim": WIDTH, "depth": 2, "num_heads": 2, "patch_size": 16, "stride": 16}
    fields |= {"in_chans": 1, "mel_bins": 128, "max_length": 768, "num_classes": 527, "model_variant": "finetune"}
    fields |= {"mlp_ratio": 4.0, "qkv_bias": True, "drop_rate": 0.0, "attn_drop_rate": 0.0, "activation_dropout": 0.0}
    fields |= {"post_mlp_drop": 0.0, "start_drop_path_rate": 0.0, "end_drop_path_rate": 0.0, "norm_eps": 1e-5}
    fields |= {"layer_norm_first": False, "norm_affine": True, "fixed_positions": True, "img_size": [1024, 128]}
    fields |= {
        "architectures": ["EATModel"],
        "auto_map": {},
        "torch_dtype": "float32",
        "transformers_version": "4.51.3",
    }
    save_file(port(eat_weights()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    encoder = read_audio_encoder(tmp_path)
    assert (encoder.config.layer_norm_eps, encoder.config.num_attention_heads, encoder.notes) == (1e-5, 2, [])
    (tmp_path / "config.json").write_text(json.dumps(fields | changes))
    with pytest.raises(ValueError) as error:
        read_audio_encoder(tmp_path)
    assert message in str(error.value)


def test_a_configuration_of_another_model_in_the_same_folder_is_not_the_encoders(tmp_path):
    path = pretrained_file(tmp_path / "eat.pt")
    (tmp_path / "config.json").write_text(json.dumps({"d_model": 64, "num_heads": 7}))
    assert convert_audio_encoder(path)[0].num_attention_heads == 2


def test_every_tensor_that_does_not_fit_is_in_one_error(tmp_path):
    weights = eat_weights()
    del weights["blocks.1.norm2.bias"]
    weights["blocks.0.attn.qkv.weight"] = torch.zeros(3, WIDTH)
    weights["norm.weight"] = torch.ones(WIDTH)  # a final norm: of a pre-norm encoder, which is another model
    weights[IMAGE + "alibi_scale"] = torch.ones(1)
    weights["blocks.0.norm1.bias"] = torch.zeros(WIDTH, dtype=torch.int64)
    with pytest.raises(ValueError) as error:
        convert_audio_encoder(pretrained_file(tmp_path / "eat.pt", weights))
    for line in (
        "5 tensors do not fit",
        "missing: blocks.1.norm2.bias [128]",
        "misshapen: blocks.0.attn.qkv.weight [3, 128], expected [384, 128]",
        "unexpected: norm.weight [128]",
        "unexpected: alibi_scale [1]",
        "not a floating-point tensor: blocks.0.norm1.bias (torch.int64)",
    ):
        assert line in str(error.value)


def test_files_that_are_no_encoder(tmp_path):
    torch.save({"model": {"encoder.weight": torch.zeros(2)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"not an EAT encoder.*encoder\.weight"):
        convert_audio_encoder(tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"text\.pt: not a readable checkpoint"):
        convert_audio_encoder(tmp_path / "text.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        convert_audio_encoder(tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError, match="no such file"):
        convert_audio_encoder(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match=r"found cut\.safetensors, other\.pt, text\.pt"):
        convert_audio_encoder(tmp_path)


# -- What a checkpoint carries beside tensors ---------------------------------------------------------------------


def omegaconf_configuration(monkeypatch):
    """An OmegaConf configuration as pickle writes it, made without OmegaConf: classes of its names and attributes."""
    modules = {
        **{package: [] for package in ("omegaconf", "fairseq", "fairseq.dataclass", "EAT", "EAT.models")},
        "omegaconf.base": ["Metadata", "ContainerMetadata"],
        "omegaconf.dictconfig": ["DictConfig"],
        "omegaconf.listconfig": ["ListConfig"],
        "omegaconf.nodes": ["AnyNode", "IntegerNode", "EnumNode"],
        "fairseq.dataclass.configs": ["FairseqConfig"],
        "EAT.models.mae": ["Modality"],
    }
    made = {}
    for module, names in modules.items():
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        for name in names:
            made[name] = type(name, (), {"__module__": module})
            setattr(sys.modules[module], name, made[name])
    made["Modality"].__reduce__ = lambda self: (made["Modality"], (2,))  # as an enumeration

    def new(name, **attributes):
        instance = made[name].__new__(made[name])
        instance.__dict__.update(attributes)
        return instance

    def metadata(name, kind):
        reference = typing.Union[int, str]  # noqa: UP007, pickled as a call of operator.getitem
        flags = {"ref_type": reference, "object_type": kind, "optional": True, "key": None, "flags": {}}
        if name == "ContainerMetadata":
            resolvers = collections.defaultdict(dict)
            resolvers["oc"]["${a}"] = 1
            flags |= {"resolver_cache": resolvers, "key_type": typing.Any, "element_type": typing.Any}
        return new(name, **flags)

    root = new("DictConfig", _metadata=metadata("ContainerMetadata", made["FairseqConfig"]), _parent=None)
    number = new("IntegerNode", _metadata=metadata("Metadata", int), _parent=root, _val=DEPTH)
    heads = new("IntegerNode", _metadata=metadata("Metadata", int), _parent=root, _val=2)
    mode = new("EnumNode", _metadata=metadata("Metadata", made["Modality"]), _parent=root, _val=made["Modality"]())
    rates = new("ListConfig", _metadata=metadata("ContainerMetadata", list), _parent=root, _content=[number])
    inner = new(
        "DictConfig",
        _metadata=metadata("ContainerMetadata", dict),
        _parent=root,
        _content={"depth": number, "num_heads": heads},
    )
    root._content = {"model": inner, "rates": rates, "mode": mode, "any": new("AnyNode", _val=None, _parent=root)}
    return root


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "old format"])
def test_what_fairseq_files_carry_is_read_without_fairseq_and_omegaconf(tmp_path, monkeypatch, eat_truth, archive):
    checkpoint = {
        "args": argparse.Namespace(arch="data2vec_multi", lr=[5e-4], nested=argparse.Namespace(depth=12), num_heads=2),
        "optimizer_history": [{"num_updates": 400000, "best_loss": np.float64(0.25)}],
        "extra_state": {"metrics": {"count": np.int64(3), "loss": np.float32(0.5), "all": np.arange(3)}},
        "model": eat_weights() | extras(),
    }
    with monkeypatch.context() as context:
        checkpoint["cfg"] = omegaconf_configuration(context)
        torch.save(checkpoint, tmp_path / "eat.pt", _use_new_zipfile_serialization=archive)
    for module in ("omegaconf", "fairseq", "EAT"):
        monkeypatch.setitem(sys.modules, module, None)  # an import of it would fail
    config, weights = convert_audio_encoder(tmp_path / "eat.pt")
    assert config.num_attention_heads == 2
    assert torch.equal(weights["pre_norm.weight"], eat_weights()[IMAGE + "context_encoder.norm.weight"])
    assert len(weights) == len(eat_weights())


def test_the_folder_of_eats_code_may_have_any_name(tmp_path, monkeypatch):
    """Full configurations as its published code saves them: with enumerations, whose module is in that folder."""
    folder = "EAT-main"
    with monkeypatch.context() as context:
        for name in (folder, f"{folder}.models", f"{folder}.models.images"):
            context.setitem(sys.modules, name, types.ModuleType(name))
        modality = enum.Enum("Modality", "AUDIO IMAGE TEXT", module=f"{folder}.models.images")
        context.setattr(sys.modules[f"{folder}.models.images"], "Modality", modality, raising=False)
        cfg = eat_cfg(supported_modality=modality.IMAGE, image={"type": modality.IMAGE})
        torch.save({"cfg": cfg, "model": eat_weights()}, tmp_path / "eat.pt")
        cfg = eat_cfg(supported_modality=modality.AUDIO)
        torch.save({"cfg": cfg, "model": eat_weights()}, tmp_path / "other.pt")
    assert convert_audio_encoder(tmp_path / "eat.pt")[0].num_attention_heads == 2
    with pytest.raises(ValueError, match=r"cfg\.model\.supported_modality is .*, only IMAGE is supported"):
        convert_audio_encoder(tmp_path / "other.pt")


class _Touch:
    """Pickles as a call that makes a file: what must never happen."""

    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda path: _Touch(os.system, f"touch {path}"), "posix.system"),
        (lambda path: _Touch(exec, f"open({str(path)!r}, 'w')"), "builtins.exec"),
        (lambda path: _Touch(pathlib.Path.touch, path), "builtins.getattr"),
        (lambda path: _Touch(subprocess.check_call, ["touch", str(path)]), "check_call"),
    ],
    ids=["os.system", "exec", "Path.touch", "subprocess"],
)
def test_code_in_a_checkpoint_is_refused_by_name_and_not_run(tmp_path, call, named, archive):
    made = tmp_path / "made"
    model = eat_weights() | {"_ema": call(made)}
    torch.save({"model": model}, tmp_path / "eat.pt", _use_new_zipfile_serialization=archive)
    with pytest.raises(ValueError, match=f"contains .*{named}.* beside tensors.*Nothing of it was executed"):
        convert_audio_encoder(tmp_path / "eat.pt")
    assert not made.exists()


def test_stand_ins_are_gone_after_loading(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    convert_audio_encoder(pretrained_file(tmp_path / "eat.pt", args=argparse.Namespace(a=1)))
    assert set(torch.serialization.get_safe_globals()) == before


# -- Mamba-2 ------------------------------------------------------------------------------------------------------

ROWS = 272  # the tiny tokenizer's 259 entries in multiples of 16


def mamba2_model(seed=0, rows=ROWS, **fields):
    """A random Mamba-2 of transformers, the truth for the language model."""
    torch.manual_seed(seed)
    fields = {
        "hidden_size": 64,
        "num_heads": 2,
        "state_size": 128,
        "n_groups": 1,
        "tie_word_embeddings": True,
    } | fields
    tokens = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    model = Mamba2ForCausalLM(Mamba2Config(num_hidden_layers=2, vocab_size=rows, **tokens, **fields)).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and "A_log" not in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def state_spaces(folder, model, **changes):
    """`model` in the layout of state-spaces: mamba_ssm's configuration, its one different name, the tied head too."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(model.state_dict())
    weights["backbone.embedding.weight"] = weights.pop("backbone.embeddings.weight")
    torch.save(weights, folder / "pytorch_model.bin")
    config = {
        "d_model": model.config.hidden_size,
        "d_intermediate": 0,
        "n_layer": model.config.num_hidden_layers,
        "vocab_size": 259,
        "ssm_cfg": {"layer": "Mamba2"},
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 16,
        "tie_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize("layout", ["state-spaces", "file", "transformers", "shards", "bin", "headless"])
def test_language_model_equals_its_source(tmp_path, layout):
    model = mamba2_model()
    path = tmp_path / "mamba"
    if layout in ("state-spaces", "file"):
        state_spaces(path, model)
        path = path / "pytorch_model.bin" if layout == "file" else path
    elif layout == "shards":
        model.save_pretrained(path, max_shard_size="100KB")
        assert len(list(path.glob("*.safetensors"))) > 1
    else:
        (model.backbone if layout == "headless" else model).save_pretrained(path)
        if layout == "bin":
            (path / "model.safetensors").unlink()
            torch.save(dict(model.state_dict()), path / "pytorch_model.bin")
    config, weights = convert_language_model(path)
    fields = ("pad_token_id", "bos_token_id", "eos_token_id", "n_groups", "num_heads", "vocab_size")
    assert [getattr(config, name) for name in fields] == [0, 0, 0, 1, 2, ROWS]
    assert config.tie_word_embeddings is True

    loaded = Mamba2ForCausalLM(config).eval()
    missing, unexpected = loaded.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied
    tokens = torch.randint(ROWS, (2, 20), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_options_of_the_layer_reach_the_configuration(tmp_path):
    model = mamba2_model(num_heads=8, head_dim=16, state_size=16, n_groups=2, conv_kernel=3, chunk_size=32)
    options = {"headdim": 16, "d_state": 16, "ngroups": 2, "d_conv": 3, "chunk_size": 32, "dt_limit": [0.0, 0.1]}
    folder = state_spaces(tmp_path, model, ssm_cfg={"layer": "Mamba2", "dt_min": 0.01, **options})
    config, _ = convert_language_model(folder)
    names = ("head_dim", "state_size", "n_groups", "conv_kernel", "chunk_size", "num_heads", "time_step_limit")
    assert [getattr(config, name) for name in names] == [16, 16, 2, 3, 32, 8, [0.0, 0.1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ssm_cfg": {}}, "ssm_cfg.layer is 'Mamba1'"),
        ({"ssm_cfg": {"layer": "Mamba1"}}, "ssm_cfg.layer is 'Mamba1'"),
        ({"ssm_cfg": {"layer": "Mamba2", "norm_before_gate": True}}, "norm_before_gate is True, only False"),
        ({"ssm_cfg": {"layer": "Mamba2", "new": 1}}, "ssm_cfg.new is unknown"),
        ({"attn_layer_idx": [1]}, "attention layers are not supported"),
        ({"d_intermediate": 128}, "MLP layers are not supported"),
        ({"rms_norm": False}, "rms_norm is false"),
        ({"norm_epsilon": 1e-6}, "norm_epsilon is unknown"),
        ({"pad_vocab_size_multiple": 8}, "in multiples of 8 makes 264 rows, the embedding has 272"),
        ({"d_model": None}, "d_model: missing"),
        ({"model_type": "mamba"}, "model_type 'mamba', expected 'mamba2'"),
        ({"n_layer": 1}, "unexpected: backbone.layers.1.norm.weight"),
        ({"n_layer": 3}, "missing: backbone.layers.2.norm.weight"),
        ({"ssm_cfg": {"layer": "Mamba2", "d_state": 64}}, "misshapen: backbone.layers.0.mixer.in_proj.weight"),
    ],
)
def test_language_models_that_cannot_be_converted(tmp_path, changes, message):
    with pytest.raises(ValueError) as error:
        convert_language_model(state_spaces(tmp_path, mamba2_model(), **changes))
    assert message in str(error.value)


def test_a_head_that_is_not_the_embedding_it_is_tied_to(tmp_path):
    state_spaces(tmp_path, mamba2_model())
    weights = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="the two differ"):
        convert_language_model(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"needs its config\.json"):
        convert_language_model(tmp_path)


# -- One SAM directory --------------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path):
    """An EAT file, a state-spaces directory and a tokenizer file."""
    folder = tmp_path / "sources"
    folder.mkdir()
    tiny_tokenizer(audio_token=False).save_pretrained(folder / "tokenizer")
    return {
        "audio_encoder": pretrained_file(folder / "eat.pt"),
        "language_model": state_spaces(folder / "mamba", mamba2_model()),
        "tokenizer": folder / "tokenizer" / "tokenizer.json",
    }


def listed(folder):
    return sorted(path.name for path in folder.parent.iterdir())


def test_the_directory_holds_the_sources_tensors_unchanged(tmp_path, sources):
    output = tmp_path / "sam"
    report = convert(**sources, output=output, connector="time_major")
    model, info = SamForConditionalGeneration.from_pretrained(output, output_loading_info=True)
    assert not any(info.values())
    stored = model.state_dict()
    for name, value in convert_audio_encoder(sources["audio_encoder"])[1].items():
        assert torch.equal(stored[f"model.audio_tower.{name}"], value)
    language_model = mamba2_model()
    for name, value in language_model.backbone.state_dict().items():
        assert torch.equal(stored[f"model.language_model.{name}"], value)

    assert sorted(name for name in stored if ".connector." in name) == report.initialised
    assert model.model.connector.linear_1.weight.std() > 0
    assert model.config.connector == "time_major"
    assert (model.config.audio_token_id, model.config.separator_token_id) == (258, 257)
    assert model.generation_config.eos_token_id == 0 and not model.generation_config.do_sample

    # the whole of it: text alone goes the way of the source, and audio finds its slots
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        difference = (model(tokens).logits - language_model(tokens).logits).abs().max()
    assert difference < 1e-4
    processor = SamProcessor.from_pretrained(output)
    inputs = processor(text="What?", audio=np.zeros(16000), sampling_rate=16000, return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2).shape[1] <= inputs["input_ids"].shape[1] + 2


def test_the_directory_is_ready_for_chats_and_batches(tmp_path, sources):
    output = tmp_path / "sam"
    convert(**sources, output=output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert (tokenizer.padding_side, tokenizer.pad_token, tokenizer.eos_token) == (
        "left",
        "<|endoftext|>",
        "<|endoftext|>",
    )
    chat = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What?"}]}]
    prompt = "<|audio|>### Instruction:\nWhat?\n\n### Response:\n"
    assert tokenizer.apply_chat_template(chat, tokenize=False) == prompt
    assert (output / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert SamProcessor.from_pretrained(output).apply_chat_template(chat) == prompt


def test_the_report_says_what_was_read_and_what_is_untrained(tmp_path, sources):
    report = convert(**sources, output=tmp_path / "sam", dtype="bfloat16", seed=3)
    text = str(report)
    for path in (sources["audio_encoder"], sources["language_model"] / "pytorch_model.bin", sources["tokenizer"]):
        assert f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" in text
    counts = [
        sum(value.numel() for value in eat_weights().values()),
        8 * WIDTH * 64 + 64 + 64 * 64 + 64,
        sum(value.numel() for value in mamba2_model().parameters()),
    ]
    assert list(report.parameters.values()) == counts
    assert all(f"{count:,}" in text for count in counts)
    assert "initialised at random (seed 3)" in text and "model.connector.linear_2.bias" in text
    assert report.difference is None and "difference" not in text


def test_bfloat16_in_shards_keeps_the_sensitive_parameters_in_float32(tmp_path, sources):
    output = tmp_path / "sam"
    convert(**sources, output=output, dtype="bfloat16", max_shard_size="300KB")
    assert len(list(output.glob("model-*.safetensors"))) > 1
    model = SamForConditionalGeneration.from_pretrained(output, dtype=torch.bfloat16)
    truth = mamba2_model().backbone.layers[0].mixer
    mixer = model.model.language_model.layers[0].mixer
    for name in ("A_log", "D", "dt_bias"):
        assert getattr(mixer, name).dtype == torch.float32
        assert torch.equal(getattr(mixer, name), getattr(truth, name))
    assert torch.equal(mixer.in_proj.weight, truth.in_proj.weight.bfloat16())


def test_the_seed_decides_the_connector_and_nothing_else_is_touched(tmp_path, sources):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        convert(**sources, output=tmp_path / name, seed=seed)
        weights.append(SamForConditionalGeneration.from_pretrained(tmp_path / name).model.connector.linear_1.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_left_behind_by_a_failure_and_nothing_is_overwritten(tmp_path, sources, monkeypatch):
    output = tmp_path / "out" / "sam"
    output.mkdir(parents=True)
    (output / "precious").write_text("x")
    with pytest.raises(FileExistsError, match="not an empty directory"):
        convert(**sources, output=output)
    (output / "precious").unlink()

    def fails(*arguments, **options):
        raise OSError("no space left")

    with monkeypatch.context() as context:
        context.setattr(SamProcessor, "save_pretrained", fails)
        with pytest.raises(OSError, match="no space left"):
            convert(**sources, output=output)
    assert listed(output) == ["sam"] and not list(output.iterdir())
    convert(**sources, output=output)  # an empty directory is taken
    assert listed(output) == ["sam"] and (output / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"connector": "linear"}, ValueError, "connector: got 'linear'"),
        ({"dtype": "int8"}, ValueError, "dtype: got 'int8', expected one of 'float32'"),
        ({"audio_encoder": "no/such/file.pt"}, FileNotFoundError, "expected a file, a directory or a Hub id"),
        ({"tokenizer": __file__}, ValueError, "is not a tokenizer.json"),
    ],
)
def test_wrong_arguments(tmp_path, sources, changes, error, message):
    with pytest.raises(error) as raised:
        convert(**(sources | changes), output=tmp_path / "sam")
    assert message in str(raised.value)
    assert listed(tmp_path / "sam") == ["sources"]


def test_the_tokenizer_must_fit_the_embedding_and_gives_the_end_of_text(tmp_path, sources):
    small = state_spaces(tmp_path / "small", mamba2_model(rows=256), vocab_size=256)
    with pytest.raises(ValueError, match=r"259 entries \(with <\|audio\|>\).* only 256 rows"):
        convert(**(sources | {"language_model": small}), output=tmp_path / "sam")
    other = mamba2_model()
    other.config.eos_token_id = other.config.bos_token_id = other.generation_config.eos_token_id = 2
    other.save_pretrained(tmp_path / "other")
    report = convert(**(sources | {"language_model": tmp_path / "other"}), output=tmp_path / "sam")
    assert SamForConditionalGeneration.from_pretrained(tmp_path / "sam").generation_config.eos_token_id == 0
    assert "eos_token_id: 2 in the language model's configuration, 0 by the tokenizer" in str(report)


@needs(NEOX)
def test_the_published_tokenizer_needs_no_new_row(tmp_path, sources):
    """50,277 entries: the first of the embedding's eleven spare rows is the audio's, `&&` is 10494, 0 ends a text."""
    rows = {"vocab_size": 50277, "pad_vocab_size_multiple": 16}
    full = state_spaces(tmp_path / "full", mamba2_model(rows=50288, hidden_size=32, num_heads=1), **rows)
    convert(**(sources | {"language_model": full, "tokenizer": NEOX}), output=tmp_path / "sam")
    config = SamForConditionalGeneration.from_pretrained(tmp_path / "sam").config
    assert (config.audio_token_id, config.separator_token_id, config.text_config.vocab_size) == (50277, 10494, 50288)
    assert config.eos_token_id == config.text_config.eos_token_id == 0
    processor = SamProcessor.from_pretrained(tmp_path / "sam")
    inputs = processor(text="What?", audio=np.zeros(16000), sampling_rate=16000)
    assert inputs["input_ids"][:65] == [50277] * 64 + [4118]


@pytest.mark.parametrize("cls", [True, False])
def test_check_compares_with_published_features(tmp_path, sources, cls):
    time = np.arange(32000) / 16000
    waveform = 0.3 * np.sin(2 * np.pi * 440 * time).astype(np.float32)
    soundfile.write(tmp_path / "test.wav", waveform, 16000, subtype="FLOAT")
    spectrogram = SamFeatureExtractor()(waveform, 16000, return_tensors="pt")["input_features"]
    features = naive_eat(eat_weights(), spectrogram, heads=2)[0, 0 if cls else 1 :].numpy()
    features[100, 5] += 0.25  # a difference to be found
    np.save(tmp_path / "test.npy", features)
    # as a Hub's bfloat16 checkpoint: the check is of the source's own precision
    check = (tmp_path / "test.wav", tmp_path / "test.npy")
    report = convert(**sources, output=tmp_path / "sam", dtype="bfloat16", check=check)
    assert report.difference == pytest.approx(0.25, abs=1e-4)
    assert "0.25" in str(report)

    np.save(tmp_path / "test.npy", features[:100])
    with pytest.raises(ValueError, match=r"has shape \[100, 128\], expected \[513, 128\] with CLS first"):
        convert(**sources, output=tmp_path / "other", check=check)


@pytest.mark.slow
def test_sources_on_the_hub_and_a_push(tmp_path, sources):
    """Each source from a repository, one of them by its revision; the result goes up as one commit."""
    tiny_tokenizer(audio_token=False).save_pretrained(tmp_path / "tokenizer")
    up = f"""
        from huggingface_hub import HfApi
        api = HfApi()
        for name, folder in (("eat", "eat"), ("mamba", {str(sources["language_model"])!r}), ("neox", {str(tmp_path / "tokenizer")!r})):
            api.create_repo("acme/" + name)
            if name == "eat":
                api.upload_file(repo_id="acme/eat", path_in_repo="eat.pt", path_or_fileobj={str(sources["audio_encoder"])!r})
            else:
                api.upload_folder(repo_id="acme/" + name, folder_path=folder)
        api.upload_file(repo_id="acme/mamba", path_in_repo="config.json", path_or_fileobj=b"{{}}")  # a later, broken state
        api.upload_file(repo_id="acme/mamba", path_in_repo="onnx/model.safetensors", path_or_fileobj=b"x")
    """
    down = f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from sam_lab.conversion import convert
        revision = sys.argv[1]
        sources = dict(audio_encoder="acme/eat", language_model="acme/mamba@" + revision, tokenizer="acme/neox@main")
        print(convert(**sources, output={str(tmp_path / "sam")!r}, push_to_hub="acme/sam"))
    """
    with LoopbackHub() as hub:

        def run(code, *arguments):
            done = subprocess.run(
                [sys.executable, "-c", textwrap.dedent(code), *arguments],
                env=hub.environment(tmp_path / "home"),
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        run(up)
        revision = hub.commits("acme/mamba")[1].sha
        report = run(down, revision)
        assert f"audio encoder from acme/eat at {hub.commits('acme/eat')[-1].sha}" in report
        assert f"language model from acme/mamba@{revision} at {revision}" in report
        assert f"tokenizer from acme/neox@main at {hub.commits('acme/neox')[-1].sha}" in report
        pushed = hub.commits("acme/sam")[-1]
        assert f"commit/{pushed.sha}" in report and len(hub.commits("acme/sam")) == 2
        local = {path.name: path.read_bytes() for path in (tmp_path / "sam").iterdir() if path.is_file()}
        assert pushed.files == local
        card = local["README.md"].decode()
        assert "base_model:\n- acme/eat\n- acme/mamba\n" in card and "# acme/sam\n" in card
    model = SamForConditionalGeneration.from_pretrained(tmp_path / "sam")
    truth = mamba2_model().backbone.norm_f.weight
    assert torch.equal(model.model.language_model.norm_f.weight, truth)
