"""The whole model on the GPU: through the kernels, beside the CPU, with adapters, with FlashAttention."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_config, tiny_inputs, tiny_model

import kernels_sam as kernels
from modeling_sam import SamAudioModel, SamForConditionalGeneration

TARGETS = r".*language_model\.layers\.\d+\.mixer\.(in_proj|out_proj)"
# 8 heads: the outputs of in_proj are a multiple of 8, so the fused layer runs
FUSED = {"num_heads": 8, "head_dim": 16, "hidden_size": 64}


def on(device, inputs):
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def test_logits_and_tokens_equal_the_cpu():
    texts = ["Hi", "What do you hear in this clip?", "Is there a dog?"]
    inputs = tiny_inputs(texts)
    cpu = tiny_model(**FUSED)
    with torch.no_grad():
        expected = cpu(**inputs).logits
        tokens = cpu.generate(**inputs, max_new_tokens=20)
        beams = cpu.generate(**inputs, max_new_tokens=8, num_beams=3)
        gpu = cpu.cuda()
        logits = gpu(**on("cuda", inputs)).logits.cpu()
        real = inputs["attention_mask"].bool()
        assert (logits - expected)[real].norm() / expected[real].norm() < 2e-3
        assert torch.equal(gpu.generate(**on("cuda", inputs), max_new_tokens=20).cpu(), tokens)
        assert torch.equal(gpu.generate(**on("cuda", inputs), max_new_tokens=8, num_beams=3).cpu(), beams)


def test_a_cpu_model_works_while_kernels_are_installed():
    model, inputs = tiny_model(**FUSED), tiny_inputs()
    assert kernels.missing == {}
    model.generate(**inputs, max_new_tokens=3)
    labels = inputs["input_ids"].clone()
    model.train()(**inputs, labels=labels).loss.backward()


@pytest.mark.parametrize("split", [[1, 88], [40, 49], [88, 1]])
def test_any_split_equals_the_whole(split):
    model = tiny_model(**FUSED).cuda()
    ids = torch.randint(1, 250, (2, 89), device="cuda")
    with torch.no_grad():
        whole = model(ids, use_cache=True)
        no_cache = model(ids, use_cache=False)
        cache, logits = None, []
        for piece in ids.split(split, dim=1):
            output = model(piece, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits)
    for other in (torch.cat(logits, 1), no_cache.logits):
        assert (other - whole.logits).norm() / whole.logits.norm() < 2e-3


def test_padding_changes_nothing_on_the_gpu():
    model = tiny_model(**FUSED).cuda()
    real = torch.randint(1, 250, (1, 40), device="cuda")
    noise = torch.randint(1, 250, (1, 13), device="cuda")
    with torch.no_grad():
        alone = model(real, use_cache=True)
        for left in (True, False):
            ids = torch.cat([noise, real] if left else [real, noise], dim=1)
            mask = torch.ones_like(ids)
            mask[:, slice(None, 13) if left else slice(40, None)] = 0
            padded = model(ids, attention_mask=mask, use_cache=True)
            logits = padded.logits[mask.bool()].unsqueeze(0)
            assert (logits - alone.logits).norm() / alone.logits.norm() < 2e-3
            for a, b in zip(padded.past_key_values._tensors(), alone.past_key_values._tensors()):
                assert (a - b).norm() / b.norm() < 2e-3


def test_every_lora_matrix_gets_a_gradient_through_the_fused_layer(count_fused):
    model = tiny_model(**FUSED)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)).cuda().train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    inputs = on("cuda", tiny_inputs(["What do you hear?", "And this?"]))
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for autocast in (False, True):
        model.zero_grad()
        count_fused.clear()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            training = model(**inputs, labels=labels)
        training.loss.backward()
        assert len(count_fused) == 2, "the fused layer must have run"
        gradients = {n: p.grad for n, p in model.named_parameters() if "lora_" in n}
        assert len(gradients) == 2 * 2 * 2
        assert all(g is not None and g.abs().max() > 0 for g in gradients.values()), gradients
    with torch.no_grad():
        model.eval()
        evaluated = model(**inputs, use_cache=True).logits  # through the parts, not the fused layer
        trained = model.train()(**inputs).logits
    real = inputs["attention_mask"].bool()
    assert (trained - evaluated)[real].norm() / evaluated[real].norm() < 2e-3


def test_gradients_equal_the_cpu(count_fused):
    inputs = tiny_inputs(["What do you hear?", "And this?"])
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    gradients = {}
    for device in ("cpu", "cuda"):
        model = tiny_model(**FUSED).to(device).train()
        model(**on(device, inputs), labels=labels.to(device)).loss.backward()
        gradients[device] = {name: p.grad.cpu() for name, p in model.named_parameters()}
    assert len(count_fused) == 2
    for name, expected in gradients["cpu"].items():
        assert (gradients["cuda"][name] - expected).norm() <= 1e-2 * expected.norm() + 1e-6, name


def test_packed_equals_unpacked_on_the_gpu(count_fused):
    model = tiny_model(**FUSED).cuda().train()
    ids = torch.randint(1, 250, (1, 60), device="cuda")
    seq_idx = torch.cat([torch.zeros(1, 25), torch.ones(1, 35)], dim=1).long().cuda()
    packed = model(ids, seq_idx=seq_idx).logits
    apart = torch.cat([model(ids[:, :25]).logits, model(ids[:, 25:]).logits], dim=1)
    assert count_fused and (packed - apart).norm() / apart.norm() < 2e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_flash_attention_2_equals_sdpa(dtype):
    pytest.importorskip("flash_attn")
    config = tiny_config().audio_config
    config.hidden_size, config.num_attention_heads = 128, 2
    torch.manual_seed(0)
    features = torch.randn(3, 1024, 128, device="cuda", dtype=dtype)
    direction = torch.randn(3, 512, 128, device="cuda")
    outputs = {}
    weights = None
    for name in ("sdpa", "flash_attention_2", "eager"):
        config._attn_implementation = name
        model = SamAudioModel(config)
        if weights is None:
            weights = {k: torch.randn_like(v) * 0.05 if v.ndim > 1 else v for k, v in model.state_dict().items()}
        model.load_state_dict(weights)
        model = model.cuda().to(dtype)
        hidden = model(features).last_hidden_state
        (hidden.float() * direction).sum().backward()
        outputs[name] = (hidden.detach().float(), model.blocks[0].attn.qkv.weight.grad.float())
    for name in ("flash_attention_2", "eager"):
        for ours, expected in zip(outputs[name], outputs["sdpa"]):
            assert (ours - expected).norm() / expected.norm() < 2e-2, name


def test_flash_attention_2_by_argument(tmp_path):
    pytest.importorskip("flash_attn")
    config = tiny_config()
    config.audio_config.hidden_size, config.audio_config.num_attention_heads = 128, 2
    SamForConditionalGeneration(config).save_pretrained(tmp_path)
    model = SamForConditionalGeneration.from_pretrained(
        tmp_path, attn_implementation="flash_attention_2", dtype=torch.bfloat16, device_map="cuda"
    )
    assert model.model.audio_tower.config._attn_implementation == "flash_attention_2"
    inputs = on("cuda", tiny_inputs())
    assert model.generate(**inputs, max_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3


def test_second_gpu():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    model, inputs = tiny_model(**FUSED), tiny_inputs()
    expected = model.generate(**inputs, max_new_tokens=8)
    assert torch.equal(model.to("cuda:1").generate(**on("cuda:1", inputs), max_new_tokens=8).cpu(), expected)
