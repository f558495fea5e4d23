"""Augmentation of waveforms, against what each step should do to sounds that are known."""

import math

import numpy as np
import pytest
import scipy.signal
import torch

from sam_lab.training.waveforms import (
    OCTAVES,
    AugmentWaveforms,
    fast_length,
    mean_power,
    mix_gain,
    noise_spectrum,
    response,
    spectral_power,
    splice,
    take,
)

RATE = 16000
NOTHING = {"turn": False, "gap": 0.0, "speed": 0.0, "reverse": 0.0, "mix": 0.0, "splice": 0.0, "noise": 0.0}
NOTHING |= {"equalise": 0.0, "low_pass": 0.0, "gain": (0.0, 0.0)}


def tone(hertz, seconds=1.0, level=0.3):
    return (
        level * torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * RATE), dtype=torch.float64) / RATE).float()
    )


def noises(*seconds, seed=0):
    """White noise of some lengths, padded, and their lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([int(each * RATE) for each in seconds])
    clips = 0.1 * torch.randn(len(lengths), int(lengths.max()), generator=generator)
    return clips * (torch.arange(clips.shape[1]) < lengths[:, None]), lengths


def peak(waveform):
    """The frequency of the highest peak, in Hz."""
    spectrum = np.abs(np.fft.rfft(waveform.numpy() * np.hanning(len(waveform))))
    return spectrum.argmax() * RATE / len(waveform)


def played(clips, lengths, length, start=0, speed=1.0, gap=0, backward=False):
    rows = len(clips)
    return take(
        clips,
        lengths,
        length,
        torch.full((rows,), start),
        torch.full((rows,), speed),
        torch.full((rows,), gap),
        torch.full((rows,), backward),
        max(speed, 1.0),
    )


# -- Steps --------------------------------------------------------------------------------------------------------


def test_whole_steps_return_the_samples_themselves_and_wrap_around():
    clips, lengths = noises(0.5, 0.3)
    found = played(clips, lengths, 12000, start=1000)
    for row, clip, count in zip(found, clips, lengths.tolist()):
        expected = np.resize(np.roll(clip[:count].numpy(), -1000), 12000)
        np.testing.assert_array_equal(row.numpy(), expected)


def test_a_gap_is_silent_and_then_the_clip_begins_again():
    clips, lengths = noises(0.5)
    found = played(clips, lengths, 20000, gap=3000)[0]
    assert torch.equal(found[:8000], clips[0])
    assert not found[8000:11000].any()
    assert torch.equal(found[11000:19000], clips[0])


def test_backward_is_the_reversed_clip():
    clips, lengths = noises(0.5, 0.4)
    for row, clip, count in zip(played(clips, lengths, 6400, 7999, backward=True), clips, (8000, 6400)):
        start = 7999 % count
        expected = np.resize(np.roll(clip[:count].numpy()[::-1], start + 1 - count), 6400)
        np.testing.assert_array_equal(row.numpy(), expected)


@pytest.mark.parametrize("speed", (0.75, 1.0, 1.3))
def test_speed_moves_the_frequency_by_the_factor(speed):
    clip = tone(1000, 4.0)[None]
    found = played(clip, torch.tensor([64000]), 40000, speed=speed)[0]
    assert peak(found) == pytest.approx(1000 * speed, abs=0.5)
    expected = 0.3 * np.sin(2 * np.pi * 1000 * speed * np.arange(40000) / RATE)
    assert np.abs(found.numpy() - expected).max() < 0.01  # not only the frequency: every sample, to the end


def test_speed_is_exact_after_ten_seconds():
    """Positions in float32 would be off by 1/128 of a sample there."""
    clip = tone(3000, 10.24)[None]
    found = played(clip, torch.tensor([clip.shape[1]]), 120000, speed=1.3)[0].double().numpy()
    expected = 0.3 * np.sin(2 * np.pi * 3000 * 1.3 * np.arange(120000) / RATE)
    errors = np.abs(found - expected)
    assert errors[-4000:].max() == pytest.approx(errors[100:4100].max(), rel=0.1)


def test_snr_is_what_was_asked_for():
    own, lengths = noises(1.0, 0.5, seed=1)
    other, other_lengths = noises(0.7, 1.0, seed=2)
    other = other * torch.tensor([0.01, 5.0])[:, None]
    snr = torch.tensor([10.0, -4.0])
    gain, weight = mix_gain(mean_power(own, lengths), mean_power(other, other_lengths), snr)
    for row in range(2):
        powers = [
            np.mean(clip[row, : count[row]].numpy().astype(float) ** 2)
            for clip, count in ((own, lengths), (other * gain[:, None], other_lengths))
        ]
        assert 10 * math.log10(powers[0] / powers[1]) == pytest.approx(float(snr[row]), abs=1e-3)
    assert weight.tolist() == pytest.approx([0.7597, 0.3869], abs=1e-4)  # 10^(10/20) : 1 and 10^(-4/20) : 1


def test_a_silent_clip_takes_the_sound_and_the_label_of_the_other():
    power = torch.tensor([0.0, 0.01, 0.0])
    gain, weight = mix_gain(power, torch.tensor([0.01, 0.0, 0.0]), torch.zeros(3))
    assert gain.tolist() == [1.0, 0.0, 0.0]
    assert weight.tolist() == [0.0, 1.0, 1.0]


def test_splice_passes_from_one_clip_to_the_other():
    ones, twos = torch.ones(2, 1000), torch.full((2, 1000), 2.0)
    found = splice(ones, twos, torch.tensor([400.0, 1000.0]))
    assert (found[0, :401] == 1).all() and (found[0, 560:] == 2).all()
    assert found[0, 480] == 1.5
    assert (found[1] == 1).all()


def test_equaliser_has_its_gains_at_its_octaves():
    gains = torch.tensor([[3.0, -8.0, 8.0, 0.0, 5.0, -5.0, 2.0, 8.0, -8.0]])
    amplitude = response(gains, torch.tensor([math.inf]), 16000)
    for gain, hertz in zip(gains[0].tolist(), OCTAVES):
        found = np.interp(hertz, np.arange(8001), 20 * np.log10(amplitude[0].numpy()))
        assert found == pytest.approx(gain, abs=0.2)


def test_equalised_tones_are_louder_by_the_gain():
    augment = AugmentWaveforms(**{**NOTHING, "equalise": 8.0})
    for index, hertz in ((4, 500.0), (6, 2000.0)):
        clip = tone(hertz)[None]
        drawn = augment.draw(1, RATE, "cpu")
        drawn["strength"] = torch.ones(1)
        drawn["equaliser"] = torch.full((1, 9), 0.5)
        drawn["equaliser"][0, index] = 0.875  # three quarters of 8 dB up
        found = augment.apply(clip, torch.tensor([RATE]), RATE, drawn).waveforms[0]
        middle = slice(4000, 12000)
        change = 20 * math.log10(float(found[middle].norm() / clip[0, middle].norm()))
        assert change == pytest.approx(6.0, abs=0.05)


def test_low_pass_is_a_butterworth_of_fourth_order():
    found = response(torch.zeros(2, 9), torch.tensor([1500.0, 4000.0]), 16000)
    for row, cutoff in zip(found, (1500, 4000)):
        b, a = scipy.signal.butter(4, 2 * math.pi * cutoff, analog=True)
        _, expected = scipy.signal.freqs(b, a, 2 * np.pi * np.arange(8001))
        np.testing.assert_allclose(row.numpy(), np.abs(expected), atol=1e-4)


@pytest.mark.parametrize("slope", (0.0, 1.0, 2.0))
def test_noise_has_power_one_and_falls_by_its_slope(slope):
    num_fft = fast_length(160000)
    white = torch.randn(8, num_fft // 2 + 1, 2, generator=torch.Generator().manual_seed(0))
    spectrum = noise_spectrum(white, torch.full((8,), slope), num_fft)
    noise = torch.fft.irfft(spectrum, num_fft)
    assert float(noise.square().mean()) == pytest.approx(1.0, rel=0.1)
    assert spectral_power(spectrum, num_fft).sum() == pytest.approx(float(noise.square().sum()), rel=1e-3)
    hertz, density = scipy.signal.welch(noise.numpy(), RATE, nperseg=4096)
    low, high = (density[:, (hertz > f / 1.2) & (hertz < f * 1.2)].mean() for f in (250, 4000))
    assert math.log(low / high) / math.log(16) == pytest.approx(slope, abs=0.05)


def test_fast_lengths_have_small_primes():
    for count in (1, 83184, 82160, 165104):
        found = fast_length(count)
        assert found >= count and found % 2 == 0
        rest = found
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        assert rest == 1


# -- All of them --------------------------------------------------------------------------------------------------


def test_nothing_asked_for_changes_nothing():
    clips, lengths = noises(1.0, 0.5)
    views = AugmentWaveforms(**NOTHING)(clips, lengths, 16000)
    assert torch.equal(views.waveforms[0], clips[0])
    assert torch.equal(views.waveforms[1], torch.cat([clips[1, :8000]] * 2))
    assert views.num_samples.tolist() == [16000, 16000]
    assert views.weight.tolist() == [1.0, 1.0]


def test_a_clip_may_keep_its_length():
    clips, lengths = noises(1.0, 0.5, 0.01)
    views = AugmentWaveforms(**{**NOTHING, "full": 0.0})(clips, lengths, 12000)
    assert views.num_samples.tolist() == [12000, 8000, 400]  # cut; its own; at least one frame
    assert torch.equal(views.waveforms[1, :8000], clips[1, :8000])
    assert not views.waveforms[1, 8000:].any()


def test_a_faster_clip_is_shorter():
    clips, lengths = noises(*[1.0] * 64)
    augment = AugmentWaveforms(**{**NOTHING, "full": 0.0, "speed": 1.0})
    drawn = augment.draw(64, 24000, "cpu")
    views = augment.apply(clips, lengths, 24000, drawn)
    speed = np.exp(-0.3 + 0.6 * drawn["rate"].numpy())
    np.testing.assert_allclose(views.num_samples, 16000 / speed, atol=1)
    for row, count in zip(views.waveforms, views.num_samples.tolist()):
        assert row[count - 50 : count].any() and not row[count:].any()


def test_shares_are_those_asked_for():
    clips, lengths = noises(*[0.1] * 4000)
    augment = AugmentWaveforms(**{**NOTHING, "mix": 0.5, "splice": 0.1})
    generator = torch.Generator().manual_seed(3)
    drawn = augment.draw(4000, 1600, "cpu", generator)
    weight = augment.apply(clips, lengths, 1600, drawn).weight
    mixed, spliced = drawn["mix"] < 0.5, (drawn["mix"] >= 0.5) & (drawn["mix"] < 0.6)
    assert 0.47 < mixed.float().mean() < 0.53 and 0.08 < spliced.float().mean() < 0.12
    assert (weight[~mixed & ~spliced] == 1).all()
    assert ((weight[spliced] >= 0.25) & (weight[spliced] <= 0.75)).all()
    levels = 20 * torch.log10(weight[mixed] / (1 - weight[mixed]))  # back from weights to dB
    assert float(levels.mean()) == pytest.approx(3.0, abs=0.6) and float(levels.std()) == pytest.approx(8.0, abs=0.5)


def test_mixture_and_labels_belong_together():
    """Tones tell which clips a view holds, and how loud each is: the weight and the partner say the same."""
    hertz = (500, 1000, 2000, 4000)
    clips, lengths = torch.stack([tone(each) for each in hertz]), torch.full((4,), RATE)
    views = AugmentWaveforms(**{**NOTHING, "mix": 1.0, "turn": True})(
        clips, lengths, RATE, torch.Generator().manual_seed(0)
    )
    targets = views.targets(torch.eye(4))
    for row, (view, target) in enumerate(zip(views.waveforms, targets)):
        spectrum = np.abs(np.fft.rfft(view.numpy()))[list(hertz)] / 8000 / 0.3
        assert set(np.nonzero(spectrum > 0.02)[0]) == {row, int(views.partner[row])}
        np.testing.assert_allclose(spectrum / spectrum.sum(), target.numpy(), atol=5e-3)


def test_spliced_labels_follow_the_time():
    hertz = (500, 1000, 2000)
    clips, lengths = torch.stack([tone(each) for each in hertz]), torch.full((3,), RATE)
    views = AugmentWaveforms(**{**NOTHING, "splice": 1.0})(clips, lengths, RATE)
    for row, view in enumerate(views.waveforms):
        cut = round(float(views.weight[row]) * RATE)
        assert peak(view[: cut - 100]) == pytest.approx(hertz[row], abs=3)
        assert peak(view[cut + 300 :]) == pytest.approx(hertz[int(views.partner[row])], abs=3)


def test_noise_has_the_level_asked_for():
    clips, lengths = noises(*[1.0] * 6)
    quiet = clips * 0.01
    augment = AugmentWaveforms(**{**NOTHING, "noise": 1.0, "noise_snr": (6.0, 6.0)})
    drawn = augment.draw(6, RATE, "cpu", torch.Generator().manual_seed(0))
    for clip in (clips, quiet):
        noise = augment.apply(clip, lengths, RATE, drawn).waveforms - clip
        snr = 10 * torch.log10(clip.square().mean(1) / noise.square().mean(1))
        assert snr.tolist() == pytest.approx([6.0] * 6, abs=2.5)  # low noise varies within a second
        assert float(snr.mean()) == pytest.approx(6.0, abs=1.0)


def test_gain_is_within_its_range():
    clips, lengths = noises(*[0.1] * 500)
    views = AugmentWaveforms(**{**NOTHING, "gain": (-14.0, 8.0)})(clips, lengths, 1600)
    change = 20 * torch.log10(views.waveforms.norm(dim=1) / clips.norm(dim=1))
    assert -14.01 < change.min() < -13 and 7 < change.max() < 8.01
    assert float(change.mean()) == pytest.approx(-3.0, abs=1.0)


def test_all_steps_together_stay_finite_and_within_their_lengths():
    clips, lengths = noises(1.0, 0.03, 0.6, 0.2, 1.0, 0.5)
    clips[4] = 0  # digital silence
    for full in (1.0, 0.0, 0.5):
        views = AugmentWaveforms(full=full)(clips.half(), lengths, 20000, torch.Generator().manual_seed(1))
        assert views.waveforms.dtype == torch.float32 and views.waveforms.shape == (6, 20000)
        assert views.waveforms.isfinite().all()
        assert ((views.num_samples >= 400) & (views.num_samples <= 20000)).all()
        behind = torch.arange(20000) >= views.num_samples[:, None]
        assert not views.waveforms[behind].any()
        assert ((views.weight >= 0) & (views.weight <= 1)).all()
    assert (AugmentWaveforms()(clips, lengths, 20000).num_samples == 20000).all()


def test_the_same_generator_gives_the_same_views_and_another_does_not():
    clips, lengths = noises(0.5, 0.4, 0.3)
    first, again, other = (
        AugmentWaveforms()(clips, lengths, 9000, torch.Generator().manual_seed(seed)).waveforms for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_rows_do_not_depend_on_the_batch():
    """Each row of a batch is what the same random numbers make of that clip alone, where no other clip is added."""
    clips, lengths = noises(1.0, 0.4, 0.7)
    augment = AugmentWaveforms(mix=0.0, splice=0.0, noise=1.0, low_pass=1.0, full=0.5)
    drawn = augment.draw(3, 12000, "cpu")
    together = augment.apply(clips, lengths, 12000, drawn)
    for row in range(3):
        part = slice(row, row + 1)
        alone = augment.apply(clips[part], lengths[part], 12000, {key: value[part] for key, value in drawn.items()})
        assert alone.num_samples[0] == together.num_samples[row]
        torch.testing.assert_close(alone.waveforms[0], together.waveforms[row], atol=1e-5, rtol=1e-4)


def test_a_single_clip_is_not_mixed():
    clips, lengths = noises(0.5)
    views = AugmentWaveforms(mix=0.9, splice=0.1)(clips, lengths, 8000)
    assert views.weight.tolist() == [1.0] and views.partner.tolist() == [0]


def test_wrong_values_are_named():
    with pytest.raises(ValueError, match=r"mix and splice: got 0\.8 and 0\.4"):
        AugmentWaveforms(mix=0.8, splice=0.4)
    with pytest.raises(ValueError, match=r"reverse: got 1\.5, expected a probability"):
        AugmentWaveforms(reverse=1.5)
    with pytest.raises(ValueError, match="length: got 399 samples, expected at least 400"):
        AugmentWaveforms()(*noises(0.5), 399)
