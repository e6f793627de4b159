#!/usr/bin/env bash
# Fine-tune pretrained models and fresh weights on CoLA, SST-2 and RTE with the same seeds, and compare them.
#
#   bash scripts/compare_on_glue.sh narrow|base GLUE PRETRAINED OUT MODEL...
#
# narrow, base   settings: of encoders 128 wide with sequences of 64 tokens, or of BERT-base's size
# GLUE           a folder with GLUE's files, or hub
# PRETRAINED     a folder that has a run or an export named MODEL, for each MODEL
# OUT            the results of MODEL go to OUT/MODEL, those of fresh weights of the first MODEL's shape to
#                OUT/fresh_weights, and the comparison to OUT.json and OUT.png
#
# A second run continues an interrupted one. Requires the environment of scripts/environment.sh.
set -euo pipefail
if [ $# -lt 5 ]; then
    echo "usage: bash scripts/compare_on_glue.sh narrow|base GLUE PRETRAINED OUT MODEL..." >&2
    exit 1
fi
size=$1 glue=$2 pretrained=$3 out=$4
shift 4
case "$size" in
narrow) # Narrow encoders need a higher rate.
    rates=(3e-4) seeds=({1..8}) length=64
    cola=(--epochs 8) sst2=(--epochs 3 --max_train_rows 16000) rte=(--epochs 4)
    ;;
base)
    rates=(5e-5 1e-4 2e-4) seeds=(1 2 3) length=128
    cola=(--epochs 3) sst2=(--epochs 3) rte=(--epochs 3)
    ;;
*)
    echo "error: '$size': must be narrow or base" >&2
    exit 1
    ;;
esac
finetune() { # NAME MODEL [OPTION...]
    local common=(--glue_dir "$glue" --model "$pretrained/$2" --output_dir "$out/$1"
        --learning_rates "${rates[@]}" --seeds "${seeds[@]}" --max_seq_length "$length" "${@:3}")
    python -m bert_pld.finetune_glue --task CoLA "${cola[@]}" "${common[@]}"
    python -m bert_pld.finetune_glue --task SST-2 "${sst2[@]}" "${common[@]}"
    python -m bert_pld.finetune_glue --task RTE "${rte[@]}" "${common[@]}"
}
for model in "$@"; do
    finetune "$model" "$model"
done
finetune fresh_weights "$1" --from_scratch
python -m bert_pld.finetune_glue --summarize "${@/#/"$out"/}" "$out/fresh_weights" --json "$out.json" --plot "$out.png"
