#!/usr/bin/env bash
# BERT's second phase after a run of the scale cpu_long: an eighth as many tokens, in sequences of 64 instead of 32.
#
#   bash scripts/second_phase.sh RUN_DIR DATA_DIR OUTPUT_DIR      DATA_DIR: of `data_prep build --seq_length 32 64`
#
# θ stays at its limit. A second run resumes an interrupted one. Requires the environment of scripts/environment.sh.
set -euo pipefail
if [ $# != 3 ]; then
    echo "usage: bash scripts/second_phase.sh RUN_DIR DATA_DIR OUTPUT_DIR" >&2
    exit 1
fi
if ! [ -f "$1/given.json" ]; then
    echo "error: $1: has no given.json; must be the folder of a run of benchmarks paper" >&2
    exit 1
fi
changes=(data.seq_length=64 train_batch_size=64 train_micro_batch_size_per_gpu=64
    optimizer.params.lr=0.0005 scheduler.params.warmup_num_steps=50 scheduler.params.decay_step=8
    training.max_steps=1500 training.eval_interval=250)
if grep -q '"theta"' "$1/given.json"; then
    changes+=(progressive_layer_drop.temporal=constant progressive_layer_drop.gamma=0)
fi
python -m bert_pld.pretrain --deepspeed_config "$1/given.json" --initialize_from "$1" --data_dir "$2" \
    --output_dir "$3" "${changes[@]/#/--set=}"
