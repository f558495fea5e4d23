"""Pretraining of the audio encoder without labels."""

import torch
from torch import nn

from configuration_sam import SamAudioConfig
from modeling_sam import SamAudioBlock, sine_cosine_positions


class MaskedPatches(nn.Module):
    """Encoder and decoder of a masked autoencoder, which pretrains the encoder without labels: EAT's idea.

    Three quarters of the patches are hidden and the encoder sees the others. The decoder, which is discarded
    afterwards, predicts the hidden ones: each patch normalised to mean 0 and variance 1, and separately its mean and
    spread. Without the latter the encoder learned nothing in 2,400 steps: a normalised patch is mostly noise, but its
    level can be inferred from its surroundings.

    Args:
        encoder ([`SamAudioModel`]): The encoder to train.
        hidden_size (`int`, *optional*, defaults to 128): Width of the decoder.
        num_layers (`int`, *optional*, defaults to 2): Blocks of the decoder.
        mask_ratio (`float`, *optional*, defaults to 0.75): Share of the patches that are hidden.
    """

    def __init__(self, encoder, hidden_size=128, num_layers=2, mask_ratio=0.75):
        super().__init__()
        config = SamAudioConfig(
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=hidden_size // 64,
            intermediate_size=4 * hidden_size,
            attn_implementation="sdpa",
        )
        self.encoder = encoder
        self.patch = encoder.config.patch_size
        self.mask_ratio = mask_ratio
        self.enter = nn.Linear(encoder.config.hidden_size, hidden_size)
        self.hidden = nn.Parameter(0.02 * torch.randn(hidden_size))
        self.blocks = nn.ModuleList(SamAudioBlock(config) for _ in range(num_layers))
        self.leave = nn.Linear(hidden_size, self.patch**2 + 2)  # pixels, mean, logarithm of the spread
        positions = sine_cosine_positions(hidden_size, encoder.config.num_time_steps, encoder.config.num_bands)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, features: torch.Tensor, order: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            features (`torch.Tensor` of shape `[B, T, bins]`): Windows of normalised log-mel.
            order (`torch.Tensor` of shape `[B, n]`): Patches of each window in random order; the first are visible.
            start (`int`): Offset of the window in the ten seconds, in patches of time, for its positions.

        Returns:
            Mean square error of the pixels, over the hidden patches that are not constant, and of mean and spread.
        """
        batch, count = order.shape
        kept = count - int(count * self.mask_ratio)
        first = start * self.encoder.config.num_bands
        patches = self.encoder.local_encoder(features)
        patches = patches + self.encoder.positions[first : first + count].to(patches.dtype)
        seen = order[:, :kept, None]
        encoded = self.enter(self.encoder.encode(patches.gather(1, seen.expand(-1, -1, patches.shape[2]))))
        tokens = self.hidden.to(encoded.dtype).expand(batch, count, -1)
        tokens = tokens.scatter(1, seen.expand(-1, -1, encoded.shape[2]), encoded)
        x = tokens + self.positions[first : first + count].to(tokens.dtype)
        for block in self.blocks:
            x = block(x)
        hidden = order[:, kept:, None]
        predicted = self.leave(x.gather(1, hidden.expand(-1, -1, x.shape[2]))).float()

        # [B, T, F] -> [B, time * band, 16 * 16], in the order of the encoder's patches
        target = features.float().unflatten(1, (-1, self.patch)).unflatten(3, (-1, self.patch))
        target = target.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
        target = target.gather(1, hidden.expand(-1, -1, target.shape[2]))
        variance, mean = torch.var_mean(target, dim=2, keepdim=True)
        spread = (variance + 1e-4).sqrt()
        weight = (variance > 1e-4).float()  # digital silence carries no information
        pixels, level = predicted.split([self.patch**2, 2], dim=2)
        error = (pixels - (target - mean) / spread).square() * weight
        error = error.sum() / (weight.sum() * target.shape[2]).clamp(min=1)
        # both of about unit variance over all patches
        return error, (level - torch.cat([2 * mean, spread.log()], dim=2)).square().mean()
