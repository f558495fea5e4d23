"""Augmentation of waveforms: random changes of whole batches, on their device, that keep the labels true."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.nn import functional as F

SAMPLING_RATE = 16000  # Hz
SHORTEST = 400  # samples: one frame of the filter bank
PADDING = 1024  # samples behind a view while it is filtered: the end does not ring into the beginning
FADE = 160  # samples over which one clip passes into another
OCTAVES = tuple(31.25 * 2.0**octave for octave in range(9))  # Hz: 31.25 to 8,000, the points of the equaliser
SILENT = 1e-10  # mean power (-100 dB) under which a clip counts as silent


class Views(NamedTuple):
    """What [`AugmentWaveforms`] makes of a batch.

    Attributes:
        waveforms (`torch.Tensor` of shape `[B, length]`): Float32, zero after the end of each view.
        num_samples (`torch.Tensor` of shape `[B]`): Samples of each view.
        partner (`torch.Tensor` of shape `[B]`): The row of the batch that each view also holds.
        weight (`torch.Tensor` of shape `[B]`): Share of the row's own label, from 0 to 1; the rest belongs to the
            partner's. It is 1 where nothing was added.
    """

    waveforms: torch.Tensor
    num_samples: torch.Tensor
    partner: torch.Tensor
    weight: torch.Tensor

    def targets(self, labels: torch.Tensor) -> torch.Tensor:
        """Soft labels of the views.

        Args:
            labels (`torch.Tensor` of shape `[B, classes]`): The clips' own, such as one-hot vectors.
        """
        return torch.lerp(labels[self.partner], labels, self.weight.unsqueeze(1))


# -- Steps --------------------------------------------------------------------------------------------------------


def take(
    waveforms: torch.Tensor,
    num_samples: torch.Tensor,
    length: int,
    start: torch.Tensor,
    speed: torch.Tensor,
    gap: torch.Tensor,
    backward: torch.Tensor,
    fastest: float,
) -> torch.Tensor:
    """Plays each clip from some sample, at some speed, forward or backward, again and again with a gap between.

    Between samples a cubic (Catmull-Rom) interpolates, so that whole steps return the samples themselves. At a speed
    over 1 frequencies above 8 kHz divided by it fold back: nothing filters them.

    Args:
        waveforms (`torch.Tensor` of shape `[B, samples]`): Right-padded clips.
        num_samples (`torch.Tensor` of shape `[B]`): Samples of each clip.
        length (`int`): Samples of the result.
        start (`torch.Tensor` of shape `[B]`, int64): The sample to begin with, from 0 to `num_samples + gap - 1`.
        speed (`torch.Tensor` of shape `[B]`): Samples of the clip by sample of the result.
        gap (`torch.Tensor` of shape `[B]`, int64): Zeros between the end of the clip and its beginning.
        backward (`torch.Tensor` of shape `[B]`, bool): Play it reversed.
        fastest (`float`): The largest of all speeds, known without waiting for the device.

    Returns:
        `torch.Tensor` of shape `[B, length]`, float32.
    """
    device = waveforms.device
    count = math.ceil((length - 1) * fastest) + 4  # one sample before the first and two after the last
    place = torch.arange(-1, count - 1, device=device)
    place = start[:, None] + torch.where(backward, -1, 1)[:, None] * place
    place = place.remainder((num_samples + gap)[:, None])
    inside = place < num_samples[:, None]
    source = waveforms.gather(1, place.clamp(max=waveforms.shape[1] - 1)).float() * inside
    # float64: in float32 the hundred-thousandth position is rounded to 1/128 of a sample
    position = torch.arange(length, device=device, dtype=torch.float64) * speed.double()[:, None]
    index = position.long()
    between = (position - index).float()
    before, left, right, after = (source[:, shift:].gather(1, index) for shift in range(4))
    cubic = 3 * (left - right) + after - before
    square = 2 * before - 5 * left + 4 * right - after
    return left + 0.5 * between * (right - before + between * (square + between * cubic))


def mean_power(waveforms: torch.Tensor, num_samples: torch.Tensor) -> torch.Tensor:
    """Mean square of each clip's own samples, `[B]`; the padding must be zero."""
    return torch.linalg.vector_norm(waveforms, dim=1).square() / num_samples


def mix_gain(own: torch.Tensor, other: torch.Tensor, snr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The factor of another clip that is added at a signal-to-noise ratio, and the weight of the clip's own label.

    The weight is the clip's share of the amplitude, as in between-class learning (Tokozume et al., 2018): 0.5 at 0 dB,
    0.76 at 10 dB. Nothing is added of a silent clip, and to a silent clip the other one is added as it is, with all
    of the label.

    Args:
        own, other (`torch.Tensor` of shape `[B]`): Mean powers of the two.
        snr (`torch.Tensor` of shape `[B]`): Level of the clip over the other one, in dB.
    """
    ratio = 10 ** (snr / 20)
    gain = (own / other.clamp(min=SILENT)).sqrt() / ratio
    weight = ratio / (1 + ratio)
    own_silent, other_silent = own < SILENT, other < SILENT
    gain = torch.where(own_silent, torch.ones_like(gain), gain).masked_fill(other_silent, 0.0)
    return gain, weight.masked_fill(own_silent, 0.0).masked_fill(other_silent, 1.0)


def splice(waveforms: torch.Tensor, others: torch.Tensor, cut: torch.Tensor) -> torch.Tensor:
    """Each clip up to a sample and then the other, with a fade of 10 ms; a cut at or after the end changes nothing.

    Args:
        waveforms, others (`torch.Tensor` of shape `[B, length]`): The two clips.
        cut (`torch.Tensor` of shape `[B]`): The sample where the fade begins.
    """
    time = torch.arange(waveforms.shape[1], device=waveforms.device)
    return torch.lerp(waveforms, others, ((time - cut[:, None]) / FADE).clamp(0.0, 1.0))


@lru_cache(maxsize=16)
def fast_length(count: int) -> int:
    """The smallest even number from `count` on without a prime factor over 7, for which an FFT is fast."""
    number = count + count % 2
    while True:
        rest = number
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return number
        number += 2


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # cached tensors must work in any mode
def _octave_weights(num_fft: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Interpolation between the equaliser's points, `[9, bins]`, and the frequencies `[bins]` in Hz."""
    if device.type != "cpu":  # cached, since a copy for every batch would wait for the device
        weights, hertz = _octave_weights(num_fft, torch.device("cpu"))
        return weights.to(device), hertz.to(device)
    hertz = torch.arange(num_fft // 2 + 1, dtype=torch.float64) * SAMPLING_RATE / num_fft
    octave = (hertz.clamp(min=OCTAVES[0]) / OCTAVES[0]).log2()
    distance = (octave - torch.arange(len(OCTAVES), dtype=torch.float64)[:, None]).abs()
    return (1 - distance).clamp(min=0).float(), hertz.float()


def response(gains: torch.Tensor, cutoff: torch.Tensor, num_fft: int) -> torch.Tensor:
    """Amplitudes of an equaliser and a low-pass by frequency, `[B, num_fft / 2 + 1]`.

    Args:
        gains (`torch.Tensor` of shape `[B, 9]`): dB at the octaves from 31.25 to 8,000 Hz; in between they are
            interpolated over the logarithm of the frequency.
        cutoff (`torch.Tensor` of shape `[B]`): Hz at which the low-pass has -3 dB, falling with 24 dB an octave
            (a Butterworth of fourth order, without its phase); infinite for none.
        num_fft (`int`): Samples of the transform.
    """
    weights, hertz = _octave_weights(num_fft, gains.device)
    steep = (hertz / cutoff[:, None]).square().square().square()
    return torch.exp(gains @ weights * (math.log(10) / 20)) * (1 + steep).rsqrt()


def noise_spectrum(white: torch.Tensor, slope: torch.Tensor, num_fft: int) -> torch.Tensor:
    """The spectrum of coloured noise of mean power 1, complex, `[B, bins]`.

    Args:
        white (`torch.Tensor` of shape `[B, bins, 2]`): Normal random numbers.
        slope (`torch.Tensor` of shape `[B]`): 0 for white noise, 1 for pink, 2 for brown: the power falls with the
            frequency to this power, from 31.25 Hz on.
        num_fft (`int`): Samples of the transform.
    """
    _, hertz = _octave_weights(num_fft, white.device)
    power = (hertz.clamp(min=OCTAVES[0]) / OCTAVES[0]) ** -slope[:, None]
    amplitude = (power * (num_fft**2 / 4) / power.sum(dim=1, keepdim=True)).sqrt()
    return torch.view_as_complex(white * amplitude.unsqueeze(2))


def spectral_power(spectrum: torch.Tensor, num_fft: int) -> torch.Tensor:
    """Sum of the squares of the samples that a real signal's spectrum `[B, bins]` stands for (Parseval), `[B]`."""
    power = torch.view_as_real(spectrum).square().sum(dim=2)
    return (2 * power.sum(dim=1) - power[:, 0] - power[:, -1]) / num_fft


# -- All of them --------------------------------------------------------------------------------------------------


@dataclass
class AugmentWaveforms:
    """Random changes of waveforms that keep the labels true, for training on few clips.

    In this order: the clip is played from a random place, with a random speed, some backward, repeating itself, some
    with a gap; another clip of the batch is added, or follows in time; an equaliser, a low-pass and coloured noise
    change its spectrum; its level is changed. Everything works on whole batches, on any device, without waiting for
    it; the same step is computed for all rows and has no effect on those that it is not drawn for.

    Args:
        turn (`bool`, *optional*, defaults to `True`): Begin at a random sample and wrap around.
        full (`float`, *optional*, defaults to 1.0): Probability that a clip repeats itself until the view is full;
            otherwise it keeps its own length.
        gap (`float`, *optional*, defaults to 0.3): Probability of silence between end and beginning.
        gap_seconds (`float`, *optional*, defaults to 1.0): Longest of it.
        speed (`float`, *optional*, defaults to 0.5): Probability of another speed.
        speed_range (`float`, *optional*, defaults to 0.3): Largest logarithm of it: from 0.74 to 1.35.
        reverse (`float`, *optional*, defaults to 0.08): Probability of playing backward.
        mix (`float`, *optional*, defaults to 0.5): Probability that the previous clip of the batch is added.
        snr (`tuple[float, float]`, *optional*, defaults to `(3.0, 8.0)`): Mean and standard deviation of the clip's
            level over it, in dB.
        splice (`float`, *optional*, defaults to 0.1): Probability that the previous clip follows instead; with `mix`
            at most 1.
        noise (`float`, *optional*, defaults to 0.3): Probability of noise.
        noise_snr (`tuple[float, float]`, *optional*, defaults to `(5.0, 35.0)`): Range of the level over it, in dB.
        noise_slope (`tuple[float, float]`, *optional*, defaults to `(0.0, 2.0)`): Range of its colour, white to brown.
        equalise (`float`, *optional*, defaults to 8.0): Largest gain of the equaliser's nine points, in dB; each clip
            has a largest of its own, from 0 to this.
        low_pass (`float`, *optional*, defaults to 0.1): Probability of a low-pass.
        cutoff (`tuple[float, float]`, *optional*, defaults to `(1500.0, 6000.0)`): Range of its frequency in Hz,
            uniform over the logarithm.
        gain (`tuple[float, float]`, *optional*, defaults to `(-14.0, 8.0)`): Range of the change of level, in dB.

    Raises:
        ValueError: A probability that is none, or `mix` and `splice` that add up to more than 1.
    """

    turn: bool = True
    full: float = 1.0
    gap: float = 0.3
    gap_seconds: float = 1.0
    speed: float = 0.5
    speed_range: float = 0.3
    reverse: float = 0.08
    mix: float = 0.5
    snr: tuple[float, float] = (3.0, 8.0)
    splice: float = 0.1
    noise: float = 0.3
    noise_snr: tuple[float, float] = (5.0, 35.0)
    noise_slope: tuple[float, float] = (0.0, 2.0)
    equalise: float = 8.0
    low_pass: float = 0.1
    cutoff: tuple[float, float] = (1500.0, 6000.0)
    gain: tuple[float, float] = (-14.0, 8.0)

    def __post_init__(self):
        for name in ("full", "gap", "speed", "reverse", "mix", "splice", "noise", "low_pass"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected a probability from 0 to 1.")
        if self.mix + self.splice > 1:
            raise ValueError(f"mix and splice: got {self.mix} and {self.splice}, expected at most 1 together.")

    @torch.no_grad()
    def __call__(
        self,
        waveforms: torch.Tensor,
        num_samples: torch.Tensor,
        length: int,
        generator: torch.Generator | None = None,
    ) -> Views:
        """
        Args:
            waveforms (`torch.Tensor` of shape `[B, samples]`): Clips at 16 kHz, right-padded, of any float type.
            num_samples (`torch.Tensor` of shape `[B]`, int64): Samples of each clip, at least 1.
            length (`int`): Samples of the views, at least 400.
            generator (`torch.Generator`, *optional*): Of the waveforms' device; torch's global one by default.

        Returns:
            [`Views`]

        Raises:
            ValueError: A `length` under 400 samples.
        """
        if length < SHORTEST:
            raise ValueError(f"length: got {length} samples, expected at least {SHORTEST}, one frame.")
        return self.apply(
            waveforms, num_samples, length, self.draw(len(waveforms), length, waveforms.device, generator)
        )

    def draw(
        self, batch: int, length: int, device: torch.device | str, generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """The random numbers of a batch, one row for each clip, for [`~AugmentWaveforms.apply`]."""
        names = ("turn", "full", "gap", "gap_length", "speed", "rate", "reverse", "mix", "cut")
        names += ("noise", "noise_level", "slope", "strength", "low_pass", "cutoff", "gain")
        numbers = torch.rand(len(names), batch, device=device, generator=generator)
        drawn = dict(zip(names, numbers))
        drawn["level"] = torch.randn(batch, device=device, generator=generator)
        drawn["equaliser"] = torch.rand(batch, len(OCTAVES), device=device, generator=generator)
        if self.noise:
            bins = fast_length(length + PADDING) // 2 + 1
            drawn["white"] = torch.randn(batch, bins, 2, device=device, generator=generator)
        return drawn

    def apply(
        self, waveforms: torch.Tensor, num_samples: torch.Tensor, length: int, drawn: dict[str, torch.Tensor]
    ) -> Views:
        """The views that certain random numbers make, as in the call."""
        x, lengths = self._play(waveforms, num_samples, length, drawn)
        partner = torch.arange(len(x), device=x.device).roll(1)
        x, lengths, weight = self._combine(x, lengths, drawn)
        x = self._colour(x, lengths, drawn)
        gain = 10 ** (_between(drawn["gain"], *self.gain) / 20)
        inside = torch.arange(length, device=x.device) < lengths[:, None]
        return Views(x * (gain[:, None] * inside), lengths, partner, weight)

    def _play(self, waveforms, num_samples, length, drawn):
        speed = torch.exp(_between(drawn["rate"], -self.speed_range, self.speed_range))
        speed = torch.where(drawn["speed"] < self.speed, speed, torch.ones_like(speed))
        gap = (drawn["gap_length"] * self.gap_seconds * SAMPLING_RATE).long() * (drawn["gap"] < self.gap)
        period = num_samples + gap
        start = (drawn["turn"].double() * period).long() * self.turn
        backward = drawn["reverse"] < self.reverse
        if not self.turn:
            start = torch.where(backward, num_samples - 1, start)
        fastest = math.exp(self.speed_range) + 1e-6 if self.speed else 1.0
        x = take(waveforms, num_samples, length, start, speed, gap, backward, fastest)
        own = (period / speed).long().clamp(SHORTEST, length)
        lengths = torch.where(drawn["full"] < self.full, torch.full_like(own, length), own)
        return x * (torch.arange(length, device=x.device) < lengths[:, None]), lengths

    def _combine(self, x, lengths, drawn):
        """Adds or appends the previous clip of the batch; a single clip has none."""
        weight = torch.ones(len(x), device=x.device)
        if len(x) == 1 or not self.mix + self.splice:
            return x, lengths, weight
        other, other_lengths = x.roll(1, 0), lengths.roll(1)
        mixed = drawn["mix"] < self.mix
        spliced = ~mixed & (drawn["mix"] < self.mix + self.splice)
        power = mean_power(x, lengths)
        gain, share = mix_gain(power, power.roll(1), self.snr[0] + self.snr[1] * drawn["level"])
        cut = _between(drawn["cut"], 0.25, 0.75) * torch.minimum(lengths, other_lengths)
        if self.splice:
            x = splice(x, other, torch.where(spliced, cut, torch.full_like(cut, x.shape[1])))
        if self.mix:
            x = torch.addcmul(x, other, (gain * mixed)[:, None])
        weight = torch.where(mixed, share, torch.where(spliced, cut / other_lengths, weight))
        longer = torch.where(mixed & (gain > 0), torch.maximum(lengths, other_lengths), lengths)
        return x, torch.where(spliced, other_lengths, longer), weight

    def _colour(self, x, lengths, drawn):
        """Equaliser, low-pass and noise, in one pair of transforms."""
        if not (self.equalise or self.low_pass or self.noise):
            return x
        length, num_fft = x.shape[1], fast_length(x.shape[1] + PADDING)
        strength = self.equalise * drawn["strength"][:, None]
        low, high = (math.log(hertz) for hertz in self.cutoff)
        cutoff = torch.exp(_between(drawn["cutoff"], low, high))
        cutoff = cutoff.masked_fill(drawn["low_pass"] >= self.low_pass, math.inf)
        spectrum = torch.fft.rfft(F.pad(x, (0, num_fft - length)))
        spectrum = spectrum * response(_between(drawn["equaliser"], -1.0, 1.0) * strength, cutoff, num_fft)
        if self.noise:
            level = (spectral_power(spectrum, num_fft) / lengths).sqrt()
            level = level * 10 ** (-_between(drawn["noise_level"], *self.noise_snr) / 20)
            level = level * (drawn["noise"] < self.noise)
            noise = noise_spectrum(drawn["white"], _between(drawn["slope"], *self.noise_slope), num_fft)
            spectrum = spectrum + noise * level[:, None]
        return torch.fft.irfft(spectrum, num_fft)[:, :length]


def _between(uniform: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Uniform random numbers from [0, 1) in [low, high)."""
    return low + (high - low) * uniform
