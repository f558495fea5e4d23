"""Augmentation: random changes of log-mel spectrograms that keep the labels true."""

from dataclasses import dataclass

import numpy as np
import torch

LOG_FLOOR = -15.9424  # log of float32's epsilon: the minimum of Kaldi's log-mel


@dataclass
class AugmentLogMel:
    """Random changes of log-mel spectrograms that keep the labels true, for training on few clips.

    In this order: the clip is rotated and stretched in time, its frequencies are shifted and scaled, its loudness is
    changed, another clip of the batch is added at a lower level, and stripes in time and frequency are erased
    (SpecAugment). Two clips are mixed by adding their powers, which is the expected power of a mixture of independent
    sounds. Everything works on whole batches, on any device, with torch's global random numbers.

    Args:
        mean, std (`float`): The feature extractor's normalisation.
        stretch (`float`, *optional*, defaults to 0.2): Largest share by which a clip becomes longer or shorter.
        shift (`float`, *optional*, defaults to 4.0): Largest shift in mel bins.
        scale (`float`, *optional*, defaults to 0.05): Largest share by which distances in mel bins grow or shrink.
        gain (`float`, *optional*, defaults to 8.0): Largest change of level, in dB.
        mix (`float`, *optional*, defaults to 0.5): Probability that another clip is added.
        snr (`tuple[float, float]`, *optional*, defaults to `(3, 25)`): Range of its level below the clip's, in dB.
        time_mask (`float`, *optional*, defaults to 0.15): Longest erased stripe, as a share of the clip; two are
            erased.
        frequency_mask (`int`, *optional*, defaults to 20): Widest erased stripe in mel bins; two are erased.
        tile (`bool`, *optional*, defaults to `False`): Repeat short clips until the frames are full.
        turn (`bool`, *optional*, defaults to `True`): Rotate the clip in time by a random offset. With `turn=False`
            and `mix=0` the order and the number of sounds are preserved.
    """

    mean: float = -4.268
    std: float = 4.569
    stretch: float = 0.2
    shift: float = 4.0
    scale: float = 0.05
    gain: float = 8.0
    mix: float = 0.5
    snr: tuple[float, float] = (3.0, 25.0)
    time_mask: float = 0.15
    frequency_mask: int = 20
    tile: bool = False
    turn: bool = True

    @torch.no_grad()
    def __call__(self, features: torch.Tensor, num_frames: int | None = None) -> torch.Tensor:
        """
        Args:
            features (`torch.Tensor` of shape `[B, frames, bins]`): Normalised log-mel, padded with zeros before the
                normalisation, as [`SamFeatureExtractor`] returns it.
            num_frames (`int`, *optional*): Frames of the result, from a random place in the clip; all by default.

        Returns:
            `torch.Tensor` of shape `[B, num_frames, bins]`, float32.
        """
        x = features.float() * (2 * self.std) + self.mean  # log power
        lengths = self.lengths(x)
        x, lengths = self._move(x, lengths, num_frames or x.shape[1])
        decibel = 0.1 * float(np.log(10.0))
        x = x + self._uniform(x, -self.gain, self.gain) * decibel
        x = x.clamp(min=LOG_FLOOR)
        inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # [B, T]
        if self.mix and len(x) > 1:
            order = torch.roll(torch.arange(len(x), device=x.device), 1)
            level = self._level(x, inside)
            weaker = level - level[order] - self._uniform(x, *self.snr)[:, 0, 0] * decibel
            other = (x[order] + weaker[:, None, None]).masked_fill(~inside[order][:, :, None], -torch.inf)
            chosen = (torch.rand(len(x), device=x.device) < self.mix)[:, None, None]
            x = torch.where(chosen, torch.logaddexp(x, other), x)
        x = self._erase(x, lengths)
        x = x.masked_fill(~inside[:, :, None], 0.0)
        return (x - self.mean) / (2 * self.std)

    @staticmethod
    def lengths(log_mel: torch.Tensor) -> torch.Tensor:
        """Frames of each clip `[B]`: those after its last frame that is not all zero are padding."""
        real = (log_mel.abs() > 0.02).any(dim=2)  # half precision leaves zeros within 0.003
        frames = torch.arange(1, log_mel.shape[1] + 1, device=log_mel.device)
        return (real * frames).amax(dim=1).clamp(min=1)

    def _uniform(self, x, low, high):
        return low + (high - low) * torch.rand(len(x), 1, 1, device=x.device)

    @staticmethod
    def _level(x, inside):
        """Log of the mean power over the clip, `[B]`."""
        inside = inside[:, :, None]
        total = torch.logsumexp(x.masked_fill(~inside, -torch.inf), dim=(1, 2))
        return total - (inside.sum(dim=(1, 2)) * x.shape[2]).log()

    def _move(self, x, lengths, frames):
        """Rotates and stretches in time, shifts and scales in frequency; takes the nearest value, since interpolation
        would blur features that are sharp in evaluation."""
        batch, _, bins = x.shape
        stretch = 1 + self._uniform(x, -self.stretch, self.stretch)[:, 0]  # [B, 1]
        new_lengths = (lengths * stretch[:, 0]).long().clamp(1, frames)
        if self.tile:
            new_lengths = torch.full_like(new_lengths, frames)
        start = (torch.rand(batch, 1, device=x.device) * lengths[:, None] * self.turn).long()
        time_index = ((torch.arange(frames, device=x.device) / stretch).long() + start) % lengths[:, None]  # [B, T]
        x = x[torch.arange(batch, device=x.device)[:, None], time_index]
        scale = 1 + self._uniform(x, -self.scale, self.scale)
        bin_index = (torch.arange(bins, device=x.device) - self._uniform(x, -self.shift, self.shift)) * scale
        return x.gather(2, bin_index.round().long().clamp(0, bins - 1).expand(-1, frames, -1)), new_lengths

    def _erase(self, x, lengths):
        """Two stripes in time and two in frequency, filled with the clip's mean."""
        batch, _, bins = x.shape
        fill = x.mean(dim=(1, 2), keepdim=True)
        for axis, size, longest in (
            (1, lengths.view(-1, 1, 1), self.time_mask),
            (2, bins, self.frequency_mask / bins),
        ):
            index = torch.arange(x.shape[axis], device=x.device).view((1, -1, 1) if axis == 1 else (1, 1, -1))
            for _ in range(2):
                width = self._uniform(x, 0, longest) * size
                begin = torch.rand(batch, 1, 1, device=x.device) * (size - width)
                x = torch.where((index >= begin) & (index < begin + width), fill, x)
        return x
