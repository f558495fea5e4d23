#!/bin/sh
# Trains examples/sam-tiny from the beginning, on one GPU. Everything it needs:
#
#     DATA=../shared/data sh examples/sam_tiny.sh
#
# DEVELOPMENT=1 holds fold 3 of ESC-50 out and scores on it; without it everything that may be trained on is, and the
# score is that of fold 4. The result is in $WORK/sam-tiny.
set -eu

PYTHON=${PYTHON:-python3}
DATA=${DATA:-../shared/data}
WORK=${WORK:-runs/sam-tiny}
SEED=${SEED:-0}
MASKED_STEPS=${MASKED_STEPS:-6000}
STEPS=${STEPS:-4000}
BATCH=${BATCH:-128}
RATE=${RATE:-5e-4}
MIXTURES=${MIXTURES:-2000}
FOLD=4
PREPARE=
if [ -n "${DEVELOPMENT:-}" ]; then
    FOLD=3
    PREPARE=--development
fi
cd "$(dirname "$0")/.."
mkdir -p "$WORK"
echo "SEED=$SEED MASKED_STEPS=$MASKED_STEPS STEPS=$STEPS BATCH=$BATCH RATE=$RATE MIXTURES=$MIXTURES" \
    "sh examples/sam_tiny.sh" >"$WORK/command.txt"

# 1. Captions, mixtures, tokenizer, random weights.
$PYTHON examples/make_sam_tiny.py prepare --data "$DATA" --work "$WORK" --seed "$SEED" --mixtures "$MIXTURES" $PREPARE

# 2. The encoder alone, by masked patches.
$PYTHON examples/pretrain_encoder.py --model "$WORK/initial" --train "$WORK/train.csv" --output "$WORK/pretrained" \
    --steps "$MASKED_STEPS" --seed "$SEED" ${PRETRAIN_OPTIONS:-}

# 3. Everything together, on questions and answers.
$PYTHON examples/finetune.py --model "$WORK/pretrained" --train "$WORK/train.csv" --validation "$WORK/validation.csv" \
    --output_dir "$WORK/tuned" --train_language_model True --cache_features --augment --bf16 --seed "$SEED" \
    --max_steps "$STEPS" --per_device_train_batch_size "$BATCH" --per_device_eval_batch_size 128 \
    --learning_rate "$RATE" --lr_scheduler_type cosine --warmup_steps 300 --weight_decay 0.05 \
    --adam_beta2 0.98 --eval_strategy steps --eval_steps 500 --logging_steps 100 --save_strategy no --report_to none \
    ${FINETUNE_OPTIONS:-}

# 4. In development the score on fold 3; else bf16, attribution, licence, the score on fold 4, model card.
if [ $FOLD = 3 ]; then
    $PYTHON examples/evaluate.py esc50 --model "$WORK/tuned" --data "$WORK/esc50" --fold 3 \
        --output "$WORK/esc50-fold3.json"
else
    $PYTHON examples/make_sam_tiny.py finish --data "$DATA" --work "$WORK"
    $PYTHON examples/evaluate.py esc50 --model "$WORK/sam-tiny" --data "$WORK/esc50" --fold 4 \
        --output "$WORK/esc50-fold4.json"
    $PYTHON examples/make_sam_tiny.py card --data "$DATA" --work "$WORK"
fi
