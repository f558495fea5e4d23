"""Views of the clips that `train_encoder.py` trains on, and what the teacher says of them, all on the device."""

from dataclasses import dataclass
from typing import Any

import torch
from encoder_data import Clips
from encoder_student import PATCH_FRAMES, Student
from yamnet import YamNet

from audio_sam import FRAME_LENGTH, FRAME_SHIFT, SamFeatureExtractor
from sam_lab.training.optimizers import OPTIMIZERS
from sam_lab.training.waveforms import AugmentWaveforms, Views

FULL_FRAMES = 1024
STATISTICS = 8  # batches that the teacher's mean and spread are measured on


@dataclass
class Settings:
    """What one training does. Times are in seconds."""

    fold: int = 4
    seed: int = 0
    optimizer: str = "muon"
    learning_rate: float = 2e-3
    other_learning_rate: float = 1e-3  # with Muon: of what is no matrix of a block
    weight_decay: float = 0.05
    teacher: bool = True
    seconds: float = 240.0  # of both parts together
    full_seconds: float = 40.0  # of the second part
    steps: int = 0  # instead of the seconds, of both parts together
    full_steps: int = 0
    batch_size: int = 512
    full_batch_size: int = 256
    frames: int = 512
    drop: float = 0.25  # share of the tokens that the first part leaves out
    full_repeated: float = 0.3  # share of the second part's clips that repeat themselves until 10.24 s are full
    answer_weight: float = 0.5
    embedding_weight: float = 0.5
    ema: float = 0.999
    width: int = 256
    layers: int = 7
    heads: int = 4
    compile: bool = True
    evaluate_every: float = 20.0

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"--optimizer: got {self.optimizer!r}, expected one of {', '.join(OPTIMIZERS)}.")
        if not 0 < self.frames <= FULL_FRAMES or self.frames % 16:
            raise ValueError(f"--frames: got {self.frames}, expected a multiple of 16 up to {FULL_FRAMES}.")

    def share(self, spent: float, step: int) -> float:
        """How much of the training is over, from 0 to 1."""
        return step / self.steps if self.steps else spent / self.seconds

    def is_full(self, spent: float, step: int) -> bool:
        """Whether the second part has begun."""
        return step >= self.steps - self.full_steps if self.steps else spent >= self.seconds - self.full_seconds


def num_samples(frames: int) -> int:
    """Samples that so many frames of the filter bank take."""
    return (frames - 1) * FRAME_SHIFT + FRAME_LENGTH


def num_frames(samples: torch.Tensor) -> torch.Tensor:
    """Frames that so many samples give."""
    return 1 + (samples - FRAME_LENGTH).div(FRAME_SHIFT, rounding_mode="floor")


class Batches:
    """Draws clips and makes views, log-mel, soft labels and the teacher's opinion, all on the device."""

    def __init__(self, clips: Clips, labels: list[str], settings: Settings, teacher: YamNet | None):
        self.clips, self.settings, self.teacher = clips, settings, teacher
        device = clips.waveforms.device
        place = {label: index for index, label in enumerate(labels)}
        answer = torch.tensor([place[row["label"]] for row in clips.rows], device=device)
        self.answer = torch.nn.functional.one_hot(answer, len(labels)).float()
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        self.first = AugmentWaveforms()
        self.full = AugmentWaveforms(full=settings.full_repeated)
        self.extractors = {frames: SamFeatureExtractor(max_frames=frames) for frames in {settings.frames, FULL_FRAMES}}
        self.hear = teacher

    def views(self, is_full: bool) -> tuple[Views, torch.Tensor]:
        """The next views, and the rows of their clips."""
        settings = self.settings
        batch = settings.full_batch_size if is_full else settings.batch_size
        device = self.clips.waveforms.device
        order = torch.rand(len(self.clips), device=device, generator=self.generator).argsort()
        chosen = order.repeat(-(-batch // len(order)))[:batch]
        augment, frames = (self.full, FULL_FRAMES) if is_full else (self.first, settings.frames)
        samples = self.clips.num_samples[chosen]
        return augment(self.clips.waveforms[chosen], samples, num_samples(frames), self.generator), chosen

    def log_mel(self, views: Views, frames: int) -> torch.Tensor:
        """The features of views, as the product computes them."""
        inside = torch.arange(views.waveforms.shape[1], device=views.waveforms.device) < views.num_samples[:, None]
        mean = views.waveforms.sum(dim=1, keepdim=True) / views.num_samples[:, None]
        return self.extractors[frames].log_mel((views.waveforms - mean) * inside, views.num_samples)

    @torch.no_grad()
    def taught(
        self, waveforms: torch.Tensor, frames: int, compiled: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The teacher's scores and embeddings by patches of 0.96 s, or `None` without a teacher; another number of
        patches than a step's is not worth compiling for."""
        if self.teacher is None:
            return None
        log_mel = self.teacher.log_mel(waveforms)
        count = frames // PATCH_FRAMES
        patches = log_mel[:, : count * PATCH_FRAMES].reshape(-1, PATCH_FRAMES, log_mel.shape[2])
        scores, embedding = (self.hear if compiled else self.teacher)(patches)
        return scores.unflatten(0, (-1, count)), embedding.unflatten(0, (-1, count))

    def next(self, is_full: bool) -> dict[str, Any]:
        """What a step needs: features, frames, kept tokens, soft labels and the teacher's opinion."""
        settings = self.settings
        frames = FULL_FRAMES if is_full else settings.frames
        views, chosen = self.views(is_full)
        count = frames // 16 * 8
        keep = None
        if settings.drop and not is_full:
            order = torch.rand(len(chosen), count, device=chosen.device, generator=self.generator).argsort(dim=1)
            keep = order[:, : count - int(settings.drop * count)]
        return {
            "features": self.log_mel(views, frames),
            "frames": num_frames(views.num_samples),
            "keep": keep,
            "targets": views.targets(self.answer[chosen]),
            "taught": self.taught(views.waveforms, frames),
        }


@torch.no_grad()
def measure_teacher(student: Student, batches: Batches) -> None:
    """Sets the mean and the spread of what the teacher says of views, with random numbers of their own."""
    generator, batches.generator = batches.generator, torch.Generator(batches.answer.device).manual_seed(1234)
    said = []
    for _ in range(STATISTICS):
        taught = batches.taught(batches.views(False)[0].waveforms, batches.settings.frames)
        said.append(torch.cat([part.float() for part in taught], dim=2).flatten(0, 1))
    batches.generator = generator
    spread, mean = torch.std_mean(torch.cat(said), dim=0)
    student.teacher_mean.copy_(mean)
    student.teacher_std.copy_(spread + 0.05 * spread.mean())  # some numbers hardly ever change
