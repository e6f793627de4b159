#!/usr/bin/env bash
# The paper's comparison, from text to tables: nine variants of training on the same samples, and other settings of PLD.
#
#   WIKIPEDIA=wikiextractor=articles/ BOOKS='books=novels/*.txt' bash scripts/reproduce.sh cpu|gpu [SEEDS]
#
# WIKIPEDIA, BOOKS   sources as `python -m data_prep sources` lists them (default: both from the Hugging Face Hub)
# GLUE               a folder with GLUE's files, or hub; if set, Pre-LN, PLD, PLD with the first block kept and fresh
#                    weights are fine-tuned on CoLA, SST-2 and RTE. On a CPU, these models are first pretrained six
#                    times as long. On a GPU, Post-LN and PLD by batch are fine-tuned too.
# OUT                folder for all output (default: runs/paper_cpu or runs/paper_gpu)
#
# Relative paths start at the repository's root. A second run resumes an interrupted one.
# docs/reproducing.md describes the comparison and the measurement of time.
set -euo pipefail
cd "$(dirname "$0")/.."

scale="${1:-}"
seeds="${2:-}"
case "$scale" in
cpu)
    vocab=1024 seq_lengths=(32 64) seeds="${seeds:-3}"
    choices=(keep_first_block_sample keep_first_block keep_first_block_theta_0_7 keep_first_block_theta_0_3
        gamma_a_tenth theta_0_7)
    ;;
gpu)
    vocab=30522 seq_lengths=(128) seeds="${seeds:-1}"
    choices=(keep_first_block_sample keep_first_block gamma_a_tenth)
    ;;
*)
    echo "error: '$scale': must be cpu or gpu; usage: bash scripts/reproduce.sh cpu|gpu [SEEDS]" >&2
    exit 1
    ;;
esac
source scripts/comparison_corpus.sh
check_comparison "$seeds"
out="${OUT:-runs/paper_$scale}"

source scripts/environment.sh all
if [ "$scale" = gpu ] && ! python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
    echo "error: gpu: torch finds no GPU on this machine; use cpu" >&2
    exit 1
fi
mkdir -p "$out"
build_comparison_corpus "$out/corpus" "$vocab" "${seq_lengths[@]}"
python -m benchmarks paper run --scale "$scale" --data_dir "$out/corpus" --output_dir "$out/runs" --seeds "$seeds"
python -m benchmarks paper run --scale "$scale" --data_dir "$out/corpus" --output_dir "$out/runs" --seeds "$seeds" \
    --variants post_ln_high_lr uniform_dropping time_only depth_only "${choices[@]}"
python -m benchmarks paper summarize "$out/runs" --json "$out/paper_$scale.json" --plot "$out/paper_$scale.png" \
    --time_plot "$out/paper_${scale}_time.png"

[ -n "${GLUE:-}" ] || exit 0
models=(pre_ln_high_lr pld_sample keep_first_block_sample)
case "$scale" in
cpu)
    size=narrow
    python -m benchmarks paper run --scale cpu_long --data_dir "$out/corpus" --output_dir "$out/long" \
        --variants "${models[@]}" --seeds 1
    for model in "${models[@]}"; do
        bash scripts/second_phase.sh "$out/long/$model/seed_1" "$out/corpus" "$out/pretrained/$model"
    done
    ;;
gpu)
    size=base models+=(post_ln pld_batch)
    mkdir -p "$out/pretrained"
    for model in "${models[@]}"; do
        ln -sfn "../runs/$model/seed_1" "$out/pretrained/$model"
    done
    ;;
esac
bash scripts/compare_on_glue.sh "$size" "$GLUE" "$out/pretrained" "$out/glue" "${models[@]}"
