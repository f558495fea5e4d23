"""How fast SAM trains: LoRA, connector and encoder of a model with random weights."""

import argparse
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.utils import is_flash_attn_2_available

import kernels_sam
from audio_sam import SamFeatureExtractor
from configuration_sam import SamAudioConfig, SamConfig, mamba2_config
from modeling_sam import SamForConditionalGeneration, positions_with_loss
from sam_lab.common.checks import choose_device
from sam_lab.common.files import write_text
from sam_lab.data.collation import pack_rows
from sam_lab.timing.devices import device_name, say, synchronize
from sam_lab.training.model import choose_trainable, follow_autocast, with_adapters
from sam_lab.training.plan import plan
from sam_lab.training.recipe import load_recipe

PEAK = 790e12  # FLOP/s of an 8192^3 bf16 matrix product, measured on an H100
GIB = 2**30
# LTU's classification data were not published; the checkpoint steps in its scripts bound their number.
CLASSIFICATION_ROWS = (1_180_000, 1_470_000)


# -- The model and its batches ------------------------------------------------------------------------------------


def benchmark_config(size: str, connector: str) -> SamConfig:
    """The paper's preset; `"tiny"`, for trying the command, has the same spectrogram and slots."""
    if size != "tiny":
        return SamConfig.from_preset(size, connector)
    audio = SamAudioConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "head_dim": 16, "num_heads": 4, "state_size": 16}
    text = mamba2_config(**sizes, vocab_size=272, chunk_size=16)
    return SamConfig(
        audio_config=audio, text_config=text, connector=connector, audio_token_id=258, separator_token_id=257
    )


def benchmark_model(args: argparse.Namespace, connector: str, device: torch.device) -> torch.nn.Module:
    """A model as the second to fourth stage of a recipe train it: frozen weights in bf16, trained ones in float32."""
    attention = "flash_attention_2" if device.type == "cuda" and is_flash_attn_2_available() else "sdpa"
    torch.manual_seed(args.seed)
    with torch.device(device):
        model = SamForConditionalGeneration._from_config(
            benchmark_config(args.size, connector),
            dtype=torch.bfloat16,
            attn_implementation={"audio_config": attention},
        )
    for name, parameter in model.named_parameters():
        if name.rsplit(".", 1)[-1] in ("A_log", "D", "dt_bias"):
            parameter.data = parameter.data.float()
    trained = ["connector", "lora"] if args.frozen_encoder else ["connector", "encoder", "lora"]
    overrides = [f"lora_rank={args.rank}", f"joint_encoder={str(not args.frozen_encoder).lower()}"]
    overrides += [f"stages.{stage}.trains=[{', '.join(trained)}]" for stage in (2, 3, 4)]
    with torch.device(device):
        model = with_adapters(model, load_recipe("E6", overrides))
    choose_trainable(model, trained)
    follow_autocast(model)
    if args.recompute:
        model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if args.chunk_size:
        for layer in model.get_base_model().model.language_model.layers:
            layer.mixer.chunk_size = args.chunk_size
    return model.to(device).train()


def text_lengths(args: argparse.Namespace, number: int, rng: np.random.Generator) -> np.ndarray:
    """Tokens of prompt (with its template) and of answer (with its end of text), `[number, 2]`.

    `--text-tokens N`: N in all, half of them the answer's. `--lengths mix`, the default: prompts of 20 to 50 tokens
    and answers of a log-normal distribution (median 58, sigma 0.55, 4 to 220 tokens), 101 tokens together on average:
    an assumption about OpenAQA's mixture, whose text was not available. `--lengths captions`: the counts of GPT-NeoX's
    tokenizer for the 49,838 training captions of AudioCaps, and prompts of 20 to 35 tokens: 39 together.
    """
    if args.text_tokens:
        return np.tile([args.text_tokens - args.text_tokens // 2, args.text_tokens // 2], (number, 1))
    if args.lengths == "captions":
        every_5_percent = [2, 4, 5, 5, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 12, 13, 14, 15, 17, 20, 28]
        answers = np.interp(rng.random(number), np.linspace(0, 1, 21), every_5_percent).round() + 1
        prompts = rng.integers(20, 36, number)
    else:
        answers = np.exp(rng.normal(math.log(58), 0.55, number)).clip(4, 220).round()
        prompts = rng.integers(20, 51, number)
    lengths = np.stack([prompts, answers.astype(int)], axis=1)
    if args.text_cutoff:
        lengths[:, 1] = np.minimum(lengths[:, 1], args.text_cutoff - lengths[:, 0])
    return lengths


def longest_text(args: argparse.Namespace) -> int:
    """The most text positions that a row may have."""
    return args.text_tokens or args.text_cutoff or (100 if args.lengths == "captions" else 270)


def make_batch(config: SamConfig, lengths: np.ndarray, args: argparse.Namespace, rng) -> dict[str, Any]:
    """A micro-batch of pairs with one clip each and random words: tensors on the CPU, as a loader's worker makes them.

    `pairs`, `positions` (a list, without padding) and `labels_count` are not passed to the model.
    """
    tokens = (config.separator_token_id, config.audio_token_id)
    slots = [tokens[is_audio] for is_audio in config.audio_slot_pattern]
    rows = []
    for prompt, answer in lengths.tolist():
        words = rng.integers(1, 250, prompt + answer).tolist()
        labels = [-100] * (len(slots) + prompt) + words[prompt:]
        rows.append({"input_ids": slots + words, "labels": labels})
    packed = [[row] for row in rows] if args.pack_to is None else pack_rows(rows, args.pack_to)
    width = max(sum(len(row["input_ids"]) for row in group) for group in packed)
    width += -width % args.pad_to_multiple_of
    fills = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    if args.pack_to is not None:
        fills["seq_idx"] = len(rows)
    batch = {name: torch.full((len(packed), width), fill) for name, fill in fills.items()}
    for index, group in enumerate(packed):
        begin = 0
        for number, row in enumerate(group):
            place = slice(begin, begin := begin + len(row["input_ids"]))
            for name, value in {**row, "attention_mask": 1, "seq_idx": number}.items():
                if name in batch:
                    batch[name][index, place] = torch.as_tensor(value)
    batch["loss_positions"] = positions_with_loss(batch["labels"])
    positions = [len(row["input_ids"]) for row in rows]
    return {**batch, "pairs": len(rows), "positions": positions, "labels_count": len(batch["loss_positions"])}


def make_steps(config: SamConfig, batch: int, args: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """The micro-batches of `--steps` optimiser steps, in random order.

    Rows of similar length are in one batch, as [`RecordBatches`] groups them. The steps differ in length and only
    together have the distribution, so all of them should be run.
    """
    rng = np.random.default_rng(args.seed)
    accumulation = max(1, args.global_batch // batch)
    pool = text_lengths(args, args.steps * accumulation * batch, rng)
    total = pool.sum(axis=1)
    order = np.argsort(total * rng.uniform(0.9, 1.1, len(pool)), kind="stable").reshape(args.steps, -1)
    order = [group[np.argsort(total[group], kind="stable")].reshape(accumulation, batch) for group in order]
    return [
        [make_batch(config, pool[part], args, rng) for part in order[step]] for step in rng.permutation(args.steps)
    ]


# -- Arithmetic ---------------------------------------------------------------------------------------------------


def pair_flops(config: SamConfig, positions: float, labels: float, rank: int, joint_encoder: bool) -> float:
    """Floating-point operations of training on one pair, a multiplication and an addition being two.

    Three times the forward pass where weights are trained, twice where only their inputs have a gradient; padding
    and recomputation do not count.

    Args:
        config ([`SamConfig`]): Sizes.
        positions, labels (`float`): Positions of the language model, and those of them whose logits are needed.
        rank (`int`): Of LoRA.
        joint_encoder (`bool`): Whether the encoder is trained.
    """
    audio, text = config.audio_config, config.text_config
    d, tokens = audio.hidden_size, audio.num_time_steps * audio.num_bands + 1
    layer = 2 * tokens * (4 * d * d + 2 * d * audio.intermediate_size) + 4 * tokens * tokens * d
    encoder = audio.num_hidden_layers * layer + 2 * (tokens - 1) * audio.patch_size**2 * d

    D, inner = text.hidden_size, text.num_heads * text.head_dim
    is_flat = config.connector == "concatenation"
    connector_in, connector_tokens = (d * audio.num_bands, audio.num_time_steps) if is_flat else (d, tokens - 1)
    hidden = config.connector_hidden_size or D
    connector = 2 * connector_tokens * (connector_in * hidden + hidden * D)

    projected = 2 * inner + 2 * text.n_groups * text.state_size + text.num_heads
    frozen = 2 * (D * projected + inner * D)
    adapters = 2 * rank * (D + projected + inner + D)
    chunk = min(text.chunk_size, positions)
    scan = 2 * chunk * (text.n_groups * text.state_size + inner) + 4 * inner * text.state_size
    language_model = text.num_hidden_layers * positions * (2 * frozen + 3 * adapters + 3 * scan)
    head = 2 * 2 * labels * D * text.vocab_size
    return (3 if joint_encoder else 1) * encoder + 3 * connector + language_model + head


# -- Training -----------------------------------------------------------------------------------------------------


class Marks:
    """Time between the marks of a training step, summed by the name of the mark that ends it.

    On a GPU the marks are CUDA events, recorded by hooks where a part starts and ends: forward, and backward where
    the gradient of a part's output has been computed. While the GPU waits for Python, the time counts for the part
    that it waits for.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device):
        self.device, self.points, self.handles = device, [], []
        parts = model.get_base_model().model
        for module, name, behind in (
            (parts.audio_tower, "encoder", "connector"),
            (parts.connector, "connector", "language model"),
            (parts.language_model, "language model", "head and loss"),
        ):
            self.handles.append(module.register_forward_pre_hook(lambda *_: self("rest")))
            self.handles.append(module.register_forward_hook(partial(self.end, name, behind)))

    def __call__(self, name: str) -> None:
        if self.device.type == "cuda":
            point = torch.cuda.Event(enable_timing=True)
            point.record()
        else:
            point = time.perf_counter()
        self.points.append((name, point))

    def end(self, name: str, behind: str, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        """Marks the end of a part; its output's gradient will mark the end of the next part's backward pass."""
        self(f"{name}, forward")
        tensor = output if torch.is_tensor(output) else output.last_hidden_state
        if tensor.requires_grad:
            tensor.register_hook(lambda _: self(f"{behind}, backward"))

    def seconds(self) -> dict[str, float]:
        """Seconds by part; removes the hooks."""
        synchronize(self.device)
        totals: dict[str, float] = {}
        for (_, before), (name, point) in itertools.pairwise(self.points):
            passed = before.elapsed_time(point) / 1000 if self.device.type == "cuda" else point - before
            totals[name] = totals.get(name, 0.0) + passed
        for handle in self.handles:
            handle.remove()
        return totals


def free_memory() -> None:
    """Returns the GPU memory of deleted tensors to the system."""
    gc.collect()
    torch.cuda.empty_cache()


class Training:
    """A model, its optimiser, and their steps, for the arguments of `sam-alm benchmark train`."""

    def __init__(self, args: argparse.Namespace, connector: str, device: torch.device):
        self.args, self.device = args, device
        self.model = benchmark_model(args, connector, device)
        self.config = self.model.get_base_model().config
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=0.0, fused=device.type == "cuda")
        self.extractor = SamFeatureExtractor()
        self.sound = None

    def features(self, clips: int) -> torch.Tensor:
        """Random log-mel on the device, or with `--waveforms` log-mel of random sound in the host's memory."""
        shape = (160_000,) if self.args.waveforms else (1024, 128)
        if self.sound is None or len(self.sound) < clips:
            self.sound = torch.randn(clips, *shape, device="cpu" if self.args.waveforms else self.device)
            if self.args.waveforms and self.device.type == "cuda":
                self.sound = self.sound.pin_memory()
        sound = self.sound[:clips]
        if not self.args.waveforms:
            return sound
        samples = torch.full((clips,), shape[0], device=self.device)
        return self.extractor.log_mel(sound.to(self.device, non_blocking=True), samples)

    def micro_step(self, batch: dict[str, Any], number: int, mark: Callable[[str], None]) -> None:
        """Forward and backward of a micro-batch; `number` is the number of labels in the whole optimiser step."""
        inputs = {name: tensor for name, tensor in batch.items() if torch.is_tensor(tensor)}
        if self.device.type == "cuda":
            inputs = {name: tensor.pin_memory().to(self.device, non_blocking=True) for name, tensor in inputs.items()}
        inputs["input_features"] = self.features(batch["pairs"])
        if self.args.all_logits:
            del inputs["loss_positions"]
        mark("data")
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = self.model(**inputs, num_items_in_batch=number).loss
        mark("head and loss, forward")
        loss.backward()
        mark("connector, backward" if self.args.frozen_encoder else "encoder, backward")

    def step(self, batches: list[dict[str, Any]], mark: Callable[[str], None] = lambda _: None) -> None:
        """Takes an optimiser step."""
        number = sum(batch["labels_count"] for batch in batches)
        for batch in batches:
            self.micro_step(batch, number, mark)
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        mark("optimiser")

    def release(self) -> None:
        """Frees what a step without enough memory has left; call it outside the handler, whose error holds tensors."""
        self.sound = None
        self.optimizer.zero_grad(set_to_none=True)
        free_memory()

    def fits(self, batch: int) -> bool:
        """Whether a micro-batch of the longest rows, and an optimiser step, fit into memory."""
        rng = np.random.default_rng(self.args.seed)
        text = longest_text(self.args)
        rows = make_batch(self.config, np.tile([text - text // 2, text // 2], (batch, 1)), self.args, rng)
        try:
            self.step([rows, rows])  # two, since the first one's gradients are in memory during the second
            synchronize(self.device)
            done = True
        except torch.OutOfMemoryError:
            done = False
        if not done:
            self.release()
        say(f"  micro-batch {batch} {'fits' if done else 'does not fit'}")
        return done

    def largest(self, limit: int) -> int:
        """The largest micro-batch up to `limit` that fits, 0 for none: doubled, then halving the interval."""
        works, fails = 0, limit + 1
        while fails - works > 1:
            size = min(max(1, 2 * works), limit) if fails > limit else (works + fails) // 2
            works, fails = (size, fails) if self.fits(size) else (works, size)
            if fails <= limit and fails - works <= works // 8:  # near enough
                break
        return works

    def profile(self, batches: list[dict[str, Any]], path: Path) -> None:
        """Writes the time of each kernel in a step, and how long the GPU was busy."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] * (self.device.type == "cuda")
        synchronize(self.device)
        start = time.perf_counter()
        self.step(batches)
        synchronize(self.device)
        wall = time.perf_counter() - start
        with torch.profiler.profile(activities=activities) as profiler:
            self.step(batches)
            synchronize(self.device)
        averages = profiler.key_averages()
        busy = sum(each.self_device_time_total for each in averages) / 1e6
        tables = [averages.table(sort_by=f"self_{kind}_time_total", row_limit=40) for kind in ("device", "cpu")]
        head = f"a step of {len(batches)} micro-batch: {wall:.3f} s, kernels {busy:.3f} s\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text("\n".join([head, *tables]), path)

    def measure(self, batch: int) -> dict[str, Any]:
        """Speed, memory and share of time with a micro-batch, in a row of the result."""
        args, begin = self.args, time.perf_counter()
        steps = make_steps(self.config, batch, args)
        accumulation = len(steps[0])
        # Kernels are tuned at their first call, and compiled separately for sizes of 1, multiples of 16 and others.
        chunk = args.chunk_size or self.config.text_config.chunk_size
        kinds = {}
        for each in itertools.chain(*steps):
            rows, width = each["input_ids"].shape
            kinds[rows == 1, rows % 16 == 0, -(-width // chunk), width % 16 == 0, rows * width % 16 == 0] = each
        self.step(list(kinds.values()))
        self.step(max(steps, key=lambda step: step[-1]["input_ids"].numel())[-2:])  # memory for the longest
        synchronize(self.device)
        warm = time.perf_counter() - begin
        say(f"  micro-batch {batch}, {accumulation} a step: warm after {warm:.0f} s")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        times: list[float] = []
        while len(times) < len(steps) and (not times or sum(times) < args.seconds):
            start = time.perf_counter()
            self.step(steps[len(times)])
            synchronize(self.device)
            times.append(time.perf_counter() - start)
        done = [each for step in steps[: len(times)] for each in step]
        pairs = len(done) * batch
        positions = sum(sum(each["positions"]) for each in done)
        labels = sum(each["labels_count"] for each in done)
        memory = {}
        if self.device.type == "cuda":
            memory["peak_allocated_gib"] = torch.cuda.max_memory_allocated(self.device) / GIB
            memory["peak_reserved_gib"] = torch.cuda.max_memory_reserved(self.device) / GIB
        sample = [step[accumulation // 2] for step in steps][:8]
        marks = Marks(self.model, self.device)
        marks("begin")
        self.step(sample, marks)
        shares = marks.seconds()
        for name in shares:  # an optimiser step belongs to `accumulation` micro-batches, not to the sample's
            shares[name] *= 1 if name == "optimiser" else accumulation / len(sample)
        if args.profile is not None:
            self.profile(sample[:1], args.profile)
        rate = pairs / sum(times)
        flops = pair_flops(self.config, positions / pairs, labels / pairs, args.rank, not args.frozen_encoder)
        return {
            "per_second": rate,
            "floor_ms": 1000 * batch * flops / PEAK,
            "ms": 1000 * sum(times) / len(done),
            "accumulation": accumulation,
            "steps": len(times),
            "step_seconds": times,
            "warm_up_seconds": warm,
            "positions_per_pair": positions / pairs,
            "labels_per_pair": labels / pairs,
            "padding": 1 - positions / sum(each["input_ids"].numel() for each in done),
            "flops_per_pair": flops,
            "share_of_790_tflops": rate * flops / PEAK,
            "share_of_time": {name: value / sum(shares.values()) for name, value in shares.items()},
            **memory,
        }


def experiments(args: argparse.Namespace, connector: str, rate: float) -> Iterator[dict[str, Any]]:
    """GPU-days of the four stages for those of the experiments E1 to E6 that have this model, if all stages are as
    fast."""
    for number in range(1, 7):
        recipe = load_recipe(f"E{number}")
        of_recipe = (recipe.size, recipe.connector, recipe.lora_rank, recipe.joint_encoder)
        if of_recipe != (args.size, connector, args.rank, not args.frozen_encoder):
            continue
        days = []
        for rows in CLASSIFICATION_ROWS:
            stages = plan(load_recipe(f"E{number}", [f"data.classification.rows={rows}"]), rate)
            days.append(sum(stage["hours"] for stage in stages) / 24)
        yield {
            "work": "train: extrapolation, not run",
            "implementation": recipe.name,
            "gpu_days": days,
            "assumed": f"all four stages at {rate:.1f} pairs/s; {' to '.join(map(str, CLASSIFICATION_ROWS))} records "
            "of classification; no time for loading, saving and evaluation",
        }


# -- The rows of `sam-alm benchmark train` ------------------------------------------------------------------------


def train_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measures training steps for each connector and micro-batch: the rows of `sam-alm benchmark train`."""
    device = choose_device(args.device)
    limit, context = args.memory_limit_gib, None
    if limit is not None and device.type == "cuda":
        device = torch.zeros(1, device=device).device  # with its index
        free, total = torch.cuda.mem_get_info(device)
        context = (total - free - torch.cuda.memory_reserved(device)) / GIB
        torch.cuda.set_per_process_memory_fraction((limit - context) * GIB / total, device)
    for connector in args.connector:
        say(f"SAM-{args.size}, {connector}: building")
        training = Training(args, connector, device)
        attention = training.config.audio_config._attn_implementation
        kernels = "torch" if kernels_sam.missing or device.type == "cpu" else "mamba-ssm"
        common = {
            "work": "train",
            "implementation": f"{kernels}, {attention}",
            "size": args.size,
            "connector": connector,
            "dtype": "bfloat16",
            "state_dtype": "float32",
            "per_second": None,
            "floor_ms": None,
            "device": device_name(device),
        }
        names = "rank recompute pack_to lengths text_tokens text_cutoff all_logits waveforms chunk_size".split()
        details = {
            **{name: getattr(args, name) for name in names},
            "joint_encoder": not args.frozen_encoder,
            "memory_limit_gib": limit,
            "context_gib": context,
            "trained_parameters": sum(parameter.numel() for parameter in training.trained),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        sizes = list(args.batch)
        if limit is not None:
            say("  looking for the largest micro-batch")
            found = training.largest(args.largest_batch)
            yield {**common, "work": "train: largest micro-batch", "batch": found, **details}
            sizes = [found] if found else []
        best = 0.0
        for size in sizes:
            row = {**common, "batch": size, **details}
            try:
                row.update(training.measure(size))
                best = max(best, row["per_second"])
            except torch.OutOfMemoryError:
                row["error"] = "out of memory"
            yield row
            if "error" in row:
                if limit is not None and size > 1:  # the search did not see how memory fragments
                    sizes.append(size - max(1, size // 8))
                training.release()
        if best:
            for row in experiments(args, connector, best):
                yield {**common, "batch": None, **row}
        del training
        free_memory()
