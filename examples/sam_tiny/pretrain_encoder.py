"""Pretrains the audio encoder of a SAM checkpoint on masked patches, without labels.

    python examples/sam_tiny/pretrain_encoder.py --model runs/sam-tiny/initial \
        --train runs/sam-tiny/classification.csv --output runs/sam-tiny/pretrained --steps 6000

The idea is EAT's and the masked autoencoder's: `sam_lab.training.pretraining.MaskedPatches`, here on windows of five
seconds. `--train` is what `sam-alm finetune` takes; only its audio is used. The log-mel of all clips stays on the
device. `--resume` continues an interrupted run.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without installing it
from modeling_sam import SamForConditionalGeneration
from processing_sam import SamProcessor
from sam_lab.common.files import written
from sam_lab.data.plain_tables import clip_key, read_table
from sam_lab.training.augmentation import AugmentLogMel
from sam_lab.training.features import extract_features
from sam_lab.training.model import save_checkpoint
from sam_lab.training.optimizers import warmup_cosine
from sam_lab.training.pretraining import MaskedPatches

WINDOW = 512  # frames, 5.12 seconds


def save_state(file: Path, parts: dict[str, Any], **numbers: Any) -> None:
    """Writes the states of a training's modules and optimizer, and its numbers, for [`resume_state`]."""
    with written(file) as place:
        torch.save({name: part.state_dict() for name, part in parts.items()} | numbers, place)


def resume_state(file: Path, parts: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Loads the parts of an interrupted training with `--resume`; returns its numbers, `step` 0 for a new training."""
    if not (args.resume and file.exists()):
        file.unlink(missing_ok=True)  # another training's
        return {"spent": 0.0, "step": 0}
    state = torch.load(file, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state.pop(name))
    torch.manual_seed(args.seed + state["step"])  # other random numbers than those already used
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the SAM checkpoint whose encoder is trained")
    parser.add_argument("--train", required=True, help="CSV or JSON file, audio folder or dataset with the clips")
    parser.add_argument("--output", type=Path, required=True, help="where to put the checkpoint")
    parser.add_argument("--steps", type=int, default=6000, help="steps to train for (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="time to train for, instead of --steps")
    parser.add_argument("--batch-size", type=int, default=512, help="windows a step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="highest (default: %(default)s)")
    parser.add_argument(
        "--mask-ratio", type=float, default=0.75, help="share of hidden patches (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--resume", action="store_true", help="continue from the state in --output")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    processor = SamProcessor.from_pretrained(args.model)
    model = SamForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).to(device)
    clips = list({clip_key(clip): clip for clip in read_table(args.train)["audio"][:] if clip is not None}.values())
    if not clips:
        raise ValueError(f"--train: no row of {args.train!r} has audio, expected at least one.")
    features = extract_features(clips, processor, device, os.cpu_count() or 1)

    learner = MaskedPatches(model.model.audio_tower, mask_ratio=args.mask_ratio).to(device).train()
    decayed = [parameter for parameter in learner.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in learner.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.95),
        fused=device.type == "cuda",
    )
    extractor = processor.feature_extractor
    augment = AugmentLogMel(
        extractor.mean, extractor.std, mix=0.5, snr=(0.0, 15.0), time_mask=0.0, frequency_mask=0, tile=True
    )
    lengths = torch.cat(
        [augment.lengths(part.float() * 2 * augment.std + augment.mean) for part in features.split(64)]
    )
    chances = (lengths / WINDOW).clamp(0.2, 1.0)  # short clips, which repeat themselves, are taken less often
    count = WINDOW // learner.patch * learner.encoder.config.num_bands
    compute = torch.compile(learner) if args.compile else learner

    args.output.mkdir(parents=True, exist_ok=True)
    state_file = args.output / "pretraining.pt"
    parts = {"learner": learner, "optimizer": optimizer}
    state = resume_state(state_file, parts, args)
    spent, step = state["spent"], state["step"]
    bar = tqdm(total=args.steps if args.seconds is None else None, initial=step, desc="masked patches", unit="step")
    before, begin, saved, losses = spent, time.monotonic(), spent, []
    while (share := step / args.steps if args.seconds is None else spent / args.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * warmup_cosine(share, warmup=0.1)
        chosen = torch.multinomial(chances, args.batch_size, replacement=True)
        windows = augment(features[chosen], WINDOW)
        order = torch.rand(args.batch_size, count, device=device).argsort(dim=1)
        places = learner.encoder.config.num_time_steps - WINDOW // learner.patch
        start = 0 if step % 2 else int(torch.randint(places + 1, ()))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            errors = torch.stack(compute(windows, order, start))
            loss = errors.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        losses.append(errors.detach())
        step += 1
        bar.update()
        if step % 20 == 0 or device.type == "cpu":
            pixels, level = torch.stack(losses).mean(dim=0).tolist()  # waits for the device: the clock is right
            losses = []
            spent = before + time.monotonic() - begin
            bar.set_postfix(pixels=f"{pixels:.4f}", level=f"{level:.4f}", seconds=round(spent))
            if step % 500 == 0:
                bar.write(f"step {step}, {spent:.0f} s: pixels {pixels:.4f}, level {level:.4f}")
        if spent - saved > 60:
            save_state(state_file, parts, spent=spent, step=step)
            saved = spent
    bar.close()
    save_state(state_file, parts, spent=spent, step=step)
    print(f"{step} steps of {args.batch_size} windows in {spent:.0f} s")
    save_checkpoint(model, processor, args.output)


if __name__ == "__main__":
    main()
