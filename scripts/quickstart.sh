#!/usr/bin/env bash
# Fresh machine → environment → corpus from Python's own documentation → vocabulary → shards → pretraining with PLD and
# without → held-out loss of both → Hugging Face export → a filled [MASK] → a plot. About five minutes on two cores.
#
#   bash scripts/quickstart.sh [FOLDER]      default: runs/quickstart; a second run resumes
set -euo pipefail
cd "$(dirname "$0")/.."
began=$SECONDS
out="${1:-runs/quickstart}"
config=configs/bert_tiny_pld.json

log() { printf '\n[%3d s] %s\n' $((SECONDS - began)) "$*"; }

log "environment"
source scripts/environment.sh all
gpus="$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')"
mkdir -p "$out"

log "corpus: Python's documentation → vocabulary → HDF5 shards"
python -m data_prep build --source python-docs --vocab_size 2048 --seq_length 64 --validation_fraction 0.05 \
    --output_dir "$out/corpus"
python -m data_prep verify "$out/corpus"

log "expected depth, saving and memory"
python -m bert_pld.plan --deepspeed_config "$config" --vocab_size 2048

pretrain() {
    deepspeed --num_gpus "$gpus" --module bert_pld.pretrain --deepspeed_config "$config" \
        --data_dir "$out/corpus" "$@"
}
log "pretraining with Progressive Layer Dropping"
pretrain --output_dir "$out/pld"
log "pretraining without it"
pretrain --output_dir "$out/no_pld" --set progressive_layer_drop.enabled=false

log "export to Hugging Face, and a filled [MASK]"
python -m bert_pld.export --checkpoint "$out/pld" --output_dir "$out/hugging_face" --overwrite
python scripts/fill_mask.py "$out/hugging_face" \
    "Return a list of [MASK] from the file." \
    "If the key is not [MASK], a KeyError is raised."

log "result"
python -m bert_pld.plot "$out/pld" "$out/no_pld" --output "$out/loss.png"
python scripts/measure/compare_runs.py "$out/pld" "$out/no_pld"
log "done; plot: $out/loss.png"
