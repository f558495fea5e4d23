"""Optimizers and the course of the learning rate: AdamW, or Muon for matrices with AdamW for the rest."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

OPTIMIZERS = ("adamw", "muon")


def warmup_cosine(share: float, warmup: float = 0.05) -> float:
    """Factor of the learning rate after a share of the training: a linear rise, then a fall as a cosine."""
    return min(1.0, share / warmup + 1e-3) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def block_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that Muon is made for: trained weights of linear layers inside repeated blocks.

    Those are the `nn.Linear` below an `nn.ModuleList`. Embeddings, heads and the layers between parts of a model stay
    out, as do convolutions, norms and biases.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    linear = (layer for blocks in lists for layer in blocks.modules() if isinstance(layer, nn.Linear))
    found = {id(layer.weight): layer.weight for layer in linear if layer.weight.requires_grad}
    return list(found.values())


class MuonAdamW(torch.optim.Optimizer):
    """Muon for some matrices and AdamW for the other parameters, as one optimizer.

    Muon (Jordan et al., 2024) makes every update of a matrix orthogonal. Its updates are scaled to the root mean
    square of AdamW's (`adjust_lr_fn="match_rms_adamw"`): learning rate and weight decay mean the same for both.

    Args:
        matrices (iterable of `nn.Parameter`): Two-dimensional parameters for Muon, such as [`block_matrices`].
        others (iterable of `nn.Parameter`): The others; those with one dimension are not decayed.
        lr (`float`, *optional*, defaults to 2e-3): Learning rate of Muon.
        other_lr (`float`, *optional*): Learning rate of AdamW; `lr` by default.
        weight_decay (`float`, *optional*, defaults to 0.05): Of both.
        betas (`tuple[float, float]`, *optional*, defaults to `(0.9, 0.98)`): AdamW's.
        fused (`bool`, *optional*, defaults to `False`): AdamW's fused kernels.

    Raises:
        ImportError: torch is older than 2.9, which brought Muon.
        ValueError: No matrices.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float = 2e-3,
        other_lr: float | None = None,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.98),
        fused: bool = False,
    ):
        muon = getattr(torch.optim, "Muon", None)
        if muon is None:
            raise ImportError(
                f"optimizer: torch {torch.__version__} has no Muon, expected torch 2.9 or newer; update torch, or "
                "use 'adamw'."
            )
        matrices = list(matrices)
        if not matrices:
            raise ValueError("matrices: got none, expected at least one two-dimensional parameter; use 'adamw'.")
        other_lr = lr if other_lr is None else other_lr
        groups = decay_groups(others, weight_decay)
        self.muon = muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(groups, lr=other_lr, betas=betas, fused=fused)
        # The very dictionaries of the two: who changes a learning rate here changes theirs.
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.step()
        self.adamw.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both, `muon` and `adamw`."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what [`~MuonAdamW.state_dict`] returned."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Groups of an optimizer: parameters with several dimensions are decayed, biases and norms are not."""
    parameters = list(parameters)
    groups = (
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": weight_decay},
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


def make_optimizer(
    model: nn.Module,
    name: str = "adamw",
    lr: float = 1e-3,
    other_lr: float | None = None,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.98),
) -> torch.optim.Optimizer:
    """The optimizer of a model's trained parameters.

    Args:
        model (`nn.Module`): The model, on its device.
        name (`str`, *optional*, defaults to `"adamw"`): `"adamw"`, or `"muon"`: Muon for [`block_matrices`], AdamW for
            the rest.
        lr (`float`, *optional*, defaults to 1e-3): Learning rate, with `"muon"` that of the matrices.
        other_lr (`float`, *optional*): With `"muon"`, that of the rest; `lr` by default.
        weight_decay (`float`, *optional*, defaults to 0.05): Not for parameters of one dimension.
        betas (`tuple[float, float]`, *optional*, defaults to `(0.9, 0.98)`): AdamW's.

    Raises:
        ValueError: Another name.
        ImportError: `"muon"` with a torch older than 2.9.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer: got {name!r}, expected one of {', '.join(map(repr, OPTIMIZERS))}.")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = all(parameter.device.type == "cuda" for parameter in trained)
    if name == "adamw":
        return torch.optim.AdamW(decay_groups(trained, weight_decay), lr=lr, betas=betas, fused=fused)
    matrices = block_matrices(model)
    chosen = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in trained if id(parameter) not in chosen]
    return MuonAdamW(matrices, others, lr, other_lr, weight_decay, betas, fused)
