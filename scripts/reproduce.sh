#!/usr/bin/env bash
# The paper's comparison, from text to tables: eight ways to train the same model on the same samples.
#
#   WIKIPEDIA=wikiextractor=articles/ BOOKS='books=novels/*.txt' bash scripts/reproduce.sh cpu|gpu [SEEDS]
#
# WIKIPEDIA, BOOKS   sources as `python -m data_prep sources` lists them (default: both from the Hugging Face Hub)
# OUT                where everything goes (default: runs/paper_cpu or runs/paper_gpu)
#
# Run again it goes on where it stopped. docs/reproducing.md says what is compared, and how time is taken.
set -euo pipefail
cd "$(dirname "$0")/.."

scale="${1:-}"
seeds="${2:-}"
case "$scale" in
cpu) vocab=1024 seq_length=64 seeds="${seeds:-3}" ;;
gpu) vocab=30522 seq_length=128 seeds="${seeds:-1}" ;;
*)
    echo "error: '$scale': must be cpu or gpu; usage: bash scripts/reproduce.sh cpu|gpu [SEEDS]" >&2
    exit 1
    ;;
esac
case "$seeds" in
*[!0-9]* | 0)
    echo "error: SEEDS: '$seeds'; must be a number of at least 1" >&2
    exit 1
    ;;
esac
out="${OUT:-runs/paper_$scale}"
wikipedia="${WIKIPEDIA:-hub=wikimedia/wikipedia:20231101.en}"
books="${BOOKS:-hub=bookcorpus/bookcorpus}"

source scripts/environment.sh tensorboard
mkdir -p "$out"
if ! [ -e "$out/corpus/manifest.json" ]; then
    python -m data_prep build --source "$wikipedia" --source "$books" --vocab_size "$vocab" \
        --seq_length "$seq_length" --workers "$(nproc)" --output_dir "$out/corpus"
fi
python -m bert_pld.experiments run --scale "$scale" --data_dir "$out/corpus" --output_dir "$out/runs" --seeds "$seeds"
python -m bert_pld.experiments summarize "$out/runs" --json "$out/paper_$scale.json" --plot "$out/paper_$scale.png"
