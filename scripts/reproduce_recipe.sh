#!/usr/bin/env bash
# The recipe's comparison on a CPU, from text to tables: dropping by token against dense runs of as many steps and of
# equal compute, at 4, 8 and 12 blocks, and six times as long at 8, with two sizes of the batch and two shares of masks.
#
#   WIKIPEDIA=wikiextractor=articles/ BOOKS='books=novels/*.txt' bash scripts/reproduce_recipe.sh [SEEDS]
#
# WIKIPEDIA, BOOKS   sources as `python -m data_prep sources` lists them (default: both from the Hugging Face Hub)
# GLUE               a folder with GLUE's files, or hub; if set, the long runs are fine-tuned on CoLA, SST-2 and RTE
# OUT                folder for all output (default: runs/recipe_cpu)
#
# Relative paths start at the repository's root. A second run resumes an interrupted one.
# docs/results/recipe_cpu.md has the results, or names the page that has them.
set -euo pipefail
cd "$(dirname "$0")/.."

seeds="${1:-3}"
source scripts/comparison_corpus.sh
check_comparison "$seeds"
out="${OUT:-runs/recipe_cpu}"

source scripts/environment.sh all
mkdir -p "$out"
build_comparison_corpus "$out/corpus" 1024 32 64
compare() { # SCALE SEEDS VARIANT...
    python -m benchmarks paper run --scale "$1" --data_dir "$out/corpus" --output_dir "$out/$1" --seeds "$2" \
        --variants "${@:3}"
    python -m benchmarks paper summarize "$out/$1" --baseline dense_muon --json "$out/$1.json" --plot "$out/$1.png"
}
recipe=(dense_muon tokens_muon dense_muon_equal_compute)
for blocks in 4 8 12; do
    compare "recipe_cpu_$blocks" "$seeds" "${recipe[@]}"
    compare "recipe_cpu_${blocks}_mask_15_short" "$seeds" dense_muon tokens_same_40_muon dense_muon_equal_compute
done
compare recipe_cpu_8_long 1 "${recipe[@]}"
compare recipe_cpu_8_large_batch 1 "${recipe[@]}"
compare recipe_cpu_8_mask_15 1 "${recipe[@]}" tokens_near_muon tokens_near_40_muon

[ -n "${GLUE:-}" ] || exit 0
models=(dense_muon tokens_muon)
for scale in recipe_cpu_8_long recipe_cpu_8_large_batch; do
    for model in "${models[@]}"; do
        bash scripts/second_phase.sh "$out/$scale/$model/seed_1" "$out/corpus" "$out/pretrained/$scale/$model"
    done
    bash scripts/compare_on_glue.sh narrow "$GLUE" "$out/pretrained/$scale" "$out/glue/$scale" "${models[@]}"
done
