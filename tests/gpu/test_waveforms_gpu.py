"""Augmentation of waveforms and Muon on the GPU."""

import pytest
import torch
from torch import nn

from sam_lab.training.optimizers import make_optimizer
from sam_lab.training.waveforms import AugmentWaveforms


def clips(rows=32, samples=80000):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2000, samples + 1, (rows,), generator=generator)
    waves = 0.1 * torch.randn(rows, samples, generator=generator)
    return waves * (torch.arange(samples) < lengths[:, None]), lengths


@pytest.mark.parametrize("full", (1.0, 0.3))
def test_views_are_those_of_the_cpu(full):
    waves, lengths = clips()
    augment = AugmentWaveforms(full=full)
    drawn = augment.draw(len(waves), 82160, "cpu", torch.Generator().manual_seed(1))
    cpu = augment.apply(waves, lengths, 82160, drawn)
    gpu = augment.apply(waves.cuda(), lengths.cuda(), 82160, {name: value.cuda() for name, value in drawn.items()})
    # a speed that is rounded elsewhere moves the end by a sample
    assert (cpu.num_samples - gpu.num_samples.cpu()).abs().max() <= 1
    torch.testing.assert_close(cpu.weight, gpu.weight.cpu(), atol=1e-3, rtol=1e-3)
    difference = (cpu.waveforms - gpu.waveforms.cpu()).norm(dim=1) / cpu.waveforms.norm(dim=1)
    assert difference.max() < 0.02


def test_views_and_steps_do_not_wait_for_the_gpu():
    waves, lengths = (part.cuda() for part in clips())
    augment, generator = AugmentWaveforms(full=0.5), torch.Generator("cuda").manual_seed(0)
    model = nn.ModuleList([nn.Linear(64, 64)]).cuda()
    optimizer = make_optimizer(model, "muon")

    def step():
        views = augment(waves, lengths, 20000, generator)
        model[0](views.waveforms[:, :64]).square().mean().backward()
        optimizer.step()

    step()  # cached tables are copied
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
