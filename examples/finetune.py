"""Finetunes a SAM checkpoint: a short script to copy and change (after `pip install .`).

    python examples/finetune.py clips.csv runs/mine
    python examples/finetune.py clips.csv runs/mine path/or/hub-id

The first argument is a CSV or JSON file with the columns audio, answer and optionally prompt, an audio folder, or a
dataset on the Hub. `sam-alm finetune` does the same with options: evaluation, resuming, several GPUs, the Hub.
"""

import sys
from pathlib import Path

from transformers import AutoModel, AutoProcessor, TrainingArguments, set_seed

import sam_alm  # registers SAM with the Auto classes
from sam_lab.common.answers import generate_answers
from sam_lab.data.plain_tables import read_table, rows_with_audio
from sam_lab.training.finetuning import prepare_model, save_merged, split_rows
from sam_lab.training.trainer import SamTrainer

if len(sys.argv) not in (3, 4):
    sys.exit(__doc__)
source, output = sys.argv[1:3]
checkpoint = sys.argv[3] if len(sys.argv) > 3 else Path(__file__).parent / "sam-tiny"
set_seed(0)

# Rows of audio (a path, or a file's content), prompt and answer. A tenth of them is not trained on.
rows, held_out = split_rows(rows_with_audio(read_table(source), "clips"), validation_share=0.1)

# Connector and encoder are trained whole, the language model by adapters (paper, section 3.1). What is trained is
# float32, whatever the checkpoint's type: in bf16 small updates would round away.
processor = AutoProcessor.from_pretrained(checkpoint)
model = prepare_model(AutoModel.from_pretrained(checkpoint, dtype="auto"), lora_rank=8)

trainer = SamTrainer(
    model=model,
    args=TrainingArguments(
        output_dir=output,
        num_train_epochs=10,
        learning_rate=1e-3,
        per_device_train_batch_size=8,
        logging_steps=10,
        report_to="none",
        remove_unused_columns=False,  # the collator reads the audio
    ),
    train_dataset=rows,
    data_collator=sam_alm.SamDataCollator(processor),
    processing_class=processor,
)
trainer.train()

# The folder loads by itself, with AutoModel, `sam-alm describe --model` or `sam-alm evaluate --model`.
model = save_merged(model, processor, output)
for row, answer in zip(held_out, generate_answers(model, processor, held_out["audio"][:], held_out["prompt"][:])):
    print(f"\nprompt  {row['prompt']}\ntruth   {row['answer']}\nanswer  {answer}")
