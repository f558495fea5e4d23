"""Describes one recording (after `pip install .`).

python examples/quickstart.py street.wav
python examples/quickstart.py street.wav path/or/hub-id
"""

import sys
from pathlib import Path

from transformers import AutoModel, AutoProcessor

import sam_alm  # noqa: F401  (registers SAM with the Auto classes)

checkpoint = sys.argv[2] if len(sys.argv) > 2 else Path(__file__).parent / "sam-tiny"
model = AutoModel.from_pretrained(checkpoint)
processor = AutoProcessor.from_pretrained(checkpoint)

inputs = processor(
    text="Close-ended question: Write an audio caption describing the sound.",
    audio=sys.argv[1],
    overflow="truncate",  # of a longer recording the first 1,024 frames, 10.24 seconds
    return_tensors="pt",
)
tokens = model.generate(**inputs, max_new_tokens=64)
print(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
