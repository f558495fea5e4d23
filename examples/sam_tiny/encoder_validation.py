"""What `train_encoder.py` scores its encoder on: the held-out fold, and clips that are not of ESC-50."""

import torch
from encoder_data import Collection
from encoder_student import Student, autocast, losses
from encoder_views import FULL_FRAMES, Batches, num_frames, num_samples
from torch import nn

from audio_sam import SAMPLING_RATE
from sam_lab.training.waveforms import AugmentWaveforms


class Validation:
    """Scores a student on the held-out fold, and on the clips that are not of ESC-50."""

    def __init__(self, collection: Collection, batches: Batches):
        self.labels, self.frames = collection.labels, batches.settings.frames
        device = collection.train.waveforms.device
        place = {label: index for index, label in enumerate(self.labels)}
        self.fifty = torch.tensor([place[label] for label in collection.classes if label in place], device=device)
        self.parts = {}
        extractor = batches.extractors[FULL_FRAMES]
        for name, clips in (("held_out", collection.held_out), ("outside", collection.outside)):
            if len(clips) == 0:
                continue
            features = extractor(clips.waves(), SAMPLING_RATE, return_tensors="pt", overflow="truncate", device=device)
            self.parts[name] = (
                features["input_features"],
                num_frames(clips.num_samples).clamp(max=FULL_FRAMES),
                torch.tensor([place.get(row["label"], -1) for row in clips.rows], device=device),
            )
        self.outside_rows = collection.outside.rows
        # One crop, as the first part of the training sees clips: from the beginning, repeated until it is full.
        clips, length = collection.held_out, num_samples(self.frames)
        plain = AugmentWaveforms(
            turn=False, gap=0, speed=0, reverse=0, mix=0, splice=0, noise=0, equalise=0, low_pass=0, gain=(0.0, 0.0)
        )
        views = plain(clips.waveforms, clips.num_samples, length)
        taught = batches.taught(views.waveforms, self.frames, compiled=False)
        self.crop = (batches.log_mel(views, self.frames), num_frames(views.num_samples), taught)

    @torch.no_grad()
    def __call__(self, student: Student) -> dict[str, float]:
        """Shares of right answers: `full` (the whole clip, as the product sees it) and `crop` of the fold among its
        fifty classes, `outside` of the other clips among all labels, and `neighbours`, how often the nearest other
        clip by the mean of the tokens has the label, among all clips outside ESC-50; `teacher`, the errors of the
        teacher's scores and embedding on the crop."""
        was_training = student.training
        student.eval()
        found: dict[str, float] = {}
        features, frames, answer = self.parts["held_out"]
        logits, _, _ = self._hear(student, features, frames)
        found["full"] = self._right(logits, answer)
        chosen = logits[:, self.fifty].log_softmax(dim=1)
        position = (self.fifty[None] == answer[:, None]).float()
        found["nll"] = float(-(chosen * position).sum(dim=1).mean())
        features, frames, taught = self.crop
        logits, said, heard = self._hear(student, features, frames)
        found["crop"] = self._right(logits, answer)
        if said is not None:
            zero = torch.zeros(len(logits), len(self.labels), device=logits.device)
            _, scores, embedding = losses(student, (logits, said, heard), zero, taught, frames).tolist()
            found |= {"teacher_scores": scores, "teacher_embedding": embedding}
        if "outside" in self.parts:
            features, frames, answer = self.parts["outside"]
            logits, _, heard = self._hear(student, features, frames)
            known = answer >= 0
            found["outside"] = float((logits.argmax(dim=1) == answer)[known].float().mean()) if known.any() else 0.0
            found["neighbours"] = self._neighbours(heard)
        student.train(was_training)
        return found

    def _hear(self, student, features, frames):
        parts = [self._forward(student, *part) for part in zip(features.split(128), frames.split(128))]
        logits, said, heard = zip(*parts)
        return (
            torch.cat(logits).float(),
            None if said[0] is None else torch.cat(said).float(),
            torch.cat(heard).float(),
        )

    @staticmethod
    def _forward(student, features, frames):
        with autocast(features.device):
            return student(features, frames)

    def _right(self, logits, answer):
        return float((self.fifty[logits[:, self.fifty].argmax(dim=1)] == answer).float().mean())

    def _neighbours(self, heard):
        """Leave-one-out nearest neighbour, not of the same recording, where another clip has the label."""
        labels, recordings = ([row[key] for row in self.outside_rows] for key in ("label", "recording"))
        heard = nn.functional.normalize(heard - heard.mean(dim=0), dim=1)
        alike = (heard @ heard.T).cpu()
        same = torch.tensor([[a == b for a in recordings] for b in recordings])
        nearest = alike.masked_fill(same, -2.0).argmax(dim=1).tolist()
        pairs = list(zip(labels, recordings))
        counted = [
            row for row, (label, recording) in enumerate(pairs) if any(a == label and b != recording for a, b in pairs)
        ]
        right = [labels[nearest[row]] == labels[row] for row in counted]
        return sum(right) / max(len(right), 1)
