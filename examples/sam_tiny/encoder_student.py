"""The encoder that `train_encoder.py` trains, with its heads, and the file that it is stored in."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from configuration_sam import SamAudioConfig
from modeling_sam import SamAudioModel
from sam_lab.common.files import written

PATCH_FRAMES = 96  # of one of the teacher's patches: six of the encoder's


class Student(nn.Module):
    """The encoder with a head on the mean of a clip's tokens, its answer, and two heads on those of every 0.96 s, the
    teacher's scores and embedding.

    Args:
        config ([`SamAudioConfig`]): Sizes of the encoder.
        labels (list of `str`): What the answer is one of.
        num_scores, num_embedding (`int`, *optional*): The teacher's; 0 without a teacher.
    """

    def __init__(self, config: SamAudioConfig, labels: list[str], num_scores: int = 0, num_embedding: int = 0):
        super().__init__()
        self.labels = labels
        self.encoder = SamAudioModel(config)
        self.answers = nn.Linear(config.hidden_size, len(labels))
        self.teacher = nn.Linear(config.hidden_size, num_scores + num_embedding) if num_scores else None
        # To standardise what the teacher says.
        self.register_buffer("teacher_mean", torch.zeros(num_scores + num_embedding))
        self.register_buffer("teacher_std", torch.ones(num_scores + num_embedding))

    def forward(
        self, features: torch.Tensor, frames: torch.Tensor, keep: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """
        Args:
            features (`torch.Tensor` of shape `[B, T, bins]`): Normalised log-mel of up to 1,024 frames.
            frames (`torch.Tensor` of shape `[B]`): Frames of each clip that are not filled.
            keep (`torch.Tensor` of shape `[B, n]`, *optional*): The tokens to compute; all by default.

        Returns:
            Logits `[B, labels]`; what the teacher would say, standardised, `[B, T // 96, scores + embedding]`, or
            `None` without a teacher; the mean of the tokens that are not filled `[B, d]`.
        """
        config = self.encoder.config
        tokens = self.encoder.local_encoder(features)
        tokens = tokens + self.encoder.positions[: tokens.shape[1]].to(tokens.dtype)
        if keep is None:
            keep = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        else:
            tokens = tokens.gather(1, keep.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
        tokens = self.encoder.encode(tokens)
        first = keep // config.num_bands * config.patch_size  # each token's first frame
        heard = average((first < frames[:, None]).unsqueeze(2), tokens)[:, 0]
        said = None
        if self.teacher is not None:
            patch = torch.arange(features.shape[1] // PATCH_FRAMES, device=tokens.device)
            said = self.teacher(average(first.unsqueeze(2) // PATCH_FRAMES == patch, tokens))
        return self.answers(heard), said, heard


def average(chosen: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Means of the chosen tokens: `[B, n, groups]` and `[B, n, d]` in, `[B, groups, d]` out."""
    share = chosen.to(tokens.dtype)
    return share.mT @ tokens / share.sum(dim=1).clamp(min=1).unsqueeze(2)


def losses(
    student: Student,
    outputs: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor],
    targets: torch.Tensor,
    taught: tuple[torch.Tensor, torch.Tensor] | None,
    frames: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy of the answer, and mean square errors of the teacher's standardised scores and embedding, `[3]`.

    Args:
        student ([`Student`]): Has the teacher's mean and spread.
        outputs: What it returned.
        targets (`torch.Tensor` of shape `[B, labels]`): Soft labels.
        taught (`tuple`, *optional*): The teacher's scores and embeddings, `[B, patches, ...]`.
        frames (`torch.Tensor` of shape `[B]`): Frames that are not filled; only patches within them count.
    """
    logits, said, _ = outputs
    named = F.cross_entropy(logits.float(), targets)
    if taught is None or said is None:
        zero = torch.zeros_like(named)
        return torch.stack([named, zero, zero])
    truth = (torch.cat([part.float() for part in taught], dim=2) - student.teacher_mean) / student.teacher_std
    ends = torch.arange(1, truth.shape[1] + 1, device=truth.device) * PATCH_FRAMES
    counts = (ends <= frames[:, None] + 2).unsqueeze(2).float()  # the last frames of a clip are cut off
    error = (said.float() - truth).square() * counts
    sizes = [part.shape[2] for part in taught]
    parts = [each.mean(dim=2).sum() / counts.sum().clamp(min=1) for each in error.split(sizes, dim=2)]
    return torch.stack([named, *parts])


def save_student(student: Student, file: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Stores encoder and heads, their sizes and labels."""
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in student.state_dict().items()}
    facts = {"config": json.dumps(student.encoder.config.to_dict()), "labels": json.dumps(student.labels)}
    with written(file) as place:
        save_file(tensors, place, facts)


def load_student(file: Path) -> Student:
    """What [`save_student`] has stored, in float32.

    `load_student(file).encoder.state_dict()` are the weights of a [`SamAudioModel`] of the same sizes.
    """
    with safe_open(file, "pt") as store:
        facts, names = store.metadata(), store.keys()
        tensors = {name: store.get_tensor(name).float() for name in names}
    config = SamAudioConfig(**json.loads(facts["config"]))
    taught = len(tensors["teacher_mean"])
    student = Student(config, json.loads(facts["labels"]), taught, 0)
    student.load_state_dict(tensors)
    return student.eval()


def autocast(device: torch.device):
    """bf16 on a GPU, float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
