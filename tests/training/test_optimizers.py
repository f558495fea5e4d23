"""Muon for matrices and AdamW for the rest."""

import pytest
import torch
from tiny import tiny_model
from torch import nn

from sam_lab.training.optimizers import MuonAdamW, block_matrices, decay_groups, make_optimizer, warmup_cosine

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16)) for _ in range(2))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def learn(model, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(steps):
        x = torch.randn(32, 8, generator=generator)
        loss = (model(x) - 2 * x[:, :4]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found


def test_matrices_are_those_of_blocks():
    model = tiny_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(matrix)] for matrix in block_matrices(model)}
    assert found == {
        name
        for name, parameter in model.named_parameters()
        if (".blocks." in name or ".layers." in name)
        and parameter.ndim == 2
        and any(part in name for part in ("qkv", "proj", "fc1", "fc2"))
    }
    assert len(found) == 2 * 4 + 2 * 2  # attention and MLP of two blocks, in and out of two mixers
    model.model.audio_tower.requires_grad_(False)
    assert len(block_matrices(model)) == 4


@needs_muon
def test_every_parameter_has_one_optimizer():
    model = Blocks()
    optimizer = make_optimizer(model, "muon", 2e-3, 1e-3)
    groups = optimizer.param_groups
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    assert [(len(group["params"]), group["lr"], group["weight_decay"]) for group in groups] == [
        (2, 2e-3, 0.05),
        (2, 1e-3, 0.05),
        (8, 1e-3, 0.0),
    ]


@needs_muon
def test_a_step_is_that_of_the_two():
    ours, theirs = Blocks(), Blocks()
    theirs.load_state_dict(ours.state_dict())
    optimizer = make_optimizer(ours, "muon", 1e-2, 3e-3)
    matrices = [theirs.blocks[0][0].weight, theirs.blocks[1][0].weight]
    others = [each for each in theirs.parameters() if all(each is not matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(decay_groups(others, 0.05), lr=3e-3, betas=(0.9, 0.98))
    x = torch.randn(16, 8)
    for _ in range(3):
        for model, optimizers in ((ours, [optimizer]), (theirs, [muon, adamw])):
            model.zero_grad()
            model(x).square().mean().backward()
            for each in optimizers:
                each.step()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


@needs_muon
def test_updates_are_orthogonal_and_as_large_as_adamws():
    model = nn.ModuleList([nn.Linear(64, 64, bias=False)])
    before = model[0].weight.detach().clone()
    optimizer = MuonAdamW(block_matrices(model), [nn.Parameter(torch.zeros(1))], lr=0.1, weight_decay=0.0)
    left, _, right = torch.linalg.svd(torch.randn(64, 64))
    model[0].weight.grad = left @ torch.diag(torch.linspace(0.05, 1.0, 64)) @ right
    optimizer.step()
    update = (model[0].weight.detach() - before) / 0.1
    assert float(update.square().mean().sqrt()) == pytest.approx(0.2, abs=0.04)  # AdamW's usual root mean square
    singular = torch.linalg.svdvals(update)
    assert singular[0] / singular[-1] < 3  # the gradient's are up to twenty times as large as others


@needs_muon
def test_states_are_stored_and_rates_stay_connected():
    whole, half = Blocks(), Blocks()
    half.load_state_dict(whole.state_dict())
    first = make_optimizer(whole, "muon", 1e-2)
    learn(whole, first, 4)
    learn(whole, first, 4, seed=1)
    begun = make_optimizer(half, "muon", 1e-2)
    learn(half, begun, 4)
    resumed = Blocks()
    resumed.load_state_dict(half.state_dict())
    again = make_optimizer(resumed, "muon", 5.0)  # the state has the rates too
    again.load_state_dict(begun.state_dict())
    learn(resumed, again, 4, seed=1)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for group in again.param_groups:
        group["lr"] = 0.0
    before = {name: value.clone() for name, value in resumed.state_dict().items()}
    learn(resumed, again, 2)
    assert all(torch.equal(before[name], value) for name, value in resumed.state_dict().items())


@needs_muon
def test_a_scheduler_of_torch_moves_both():
    optimizer = make_optimizer(Blocks(), "muon", 1e-2, 1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for group in optimizer.muon.param_groups] == [5e-3]
    assert [group["lr"] for group in optimizer.adamw.param_groups] == [5e-4, 5e-4]
    optimizer.step()
    scheduler.step()


@pytest.mark.parametrize("name", ("adamw", pytest.param("muon", marks=needs_muon)))
def test_losses_fall(name):
    model = Blocks()
    losses = learn(model, make_optimizer(model, name, 1e-2), 60)
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_wrong_values_are_named():
    with pytest.raises(ValueError, match="optimizer: got 'sgd', expected one of 'adamw', 'muon'"):
        make_optimizer(Blocks(), "sgd")
    if hasattr(torch.optim, "Muon"):
        with pytest.raises(ValueError, match="matrices: got none"):
            make_optimizer(nn.Linear(2, 2), "muon")


def test_warmup_and_cosine():
    assert warmup_cosine(0.0) < 0.01 and warmup_cosine(0.5) == pytest.approx(0.5) and warmup_cosine(1.0) == 0.0
