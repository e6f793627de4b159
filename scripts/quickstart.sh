#!/usr/bin/env bash
# Fresh machine → environment → corpus from Python's own documentation → vocabulary → shards → pretraining with layer
# dropping and, beside it, without → held-out loss of both → Hugging Face export → a filled [MASK] → a plot.
#
#   bash scripts/quickstart.sh [FOLDER]      default: runs/quickstart; a second run resumes
#
# A relative FOLDER starts at the repository's root. On one core, or with a GPU, the two runs follow each other.
set -euo pipefail
cd "$(dirname "$0")/.."
began=$SECONDS
out="${1:-runs/quickstart}"
config=configs/bert_tiny_pld.json

log() { printf '\n[%3d s] %s\n' $((SECONDS - began)) "$*"; }

log "environment"
source scripts/environment.sh all
gpus="$(python -c 'import torch; print(torch.cuda.device_count())')"
bf16="$(python -c 'import torch; from bert_pld.kernels.reference import cpu_multiplies_bf16 as cpu
print(str(torch.cuda.is_available() or cpu()).lower())')"
cores="$(python -c 'import os; print(len(os.sched_getaffinity(0)))')"
mkdir -p "$out"

log "corpus: Python's documentation → vocabulary → HDF5 shards"
python -m data_prep build --source python-docs --vocab_size 2048 --seq_length 32 --validation_fraction 0.05 \
    --output_dir "$out/corpus"
python -m data_prep verify "$out/corpus"

log "expected depth, saving and memory"
python -m bert_pld.plan --deepspeed_config "$config" --vocab_size 2048

pretrain() { # name, then --set options
    local name="$1" port
    shift
    port="$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
    # One process on any machine: 64 sequences for a model of 6 × 128 are too few to divide among GPUs.
    deepspeed --num_gpus 1 --master_port "$port" --module bert_pld.pretrain \
        --deepspeed_config "$config" --data_dir "$out/corpus" --output_dir "$out/$name" \
        --set bf16.enabled="$bf16" "$@" 2>&1 | (trap '' TERM && exec sed -u "s/^/$name | /")
}
start() { # as `pretrain`, in the background: a process group of the launcher and its ranks, which `stop` can end
    set -m
    # The trap lets this shell wait for the launcher when the whole group gets SIGTERM.
    (trap : TERM && pretrain "$@") &
    set +m
}
stop() { # end the runs that have not ended, and wait until they have saved their checkpoints
    local group
    for group in $(jobs -p); do
        kill -TERM -- "-$group" 2>/dev/null || true
    done
    wait
}
trap stop EXIT
without=(--set progressive_layer_drop.enabled=false)
if [ "$gpus" -gt 0 ] || [ "$cores" -lt 2 ]; then
    log "pretraining with layer dropping, then without"
    start pld
    wait "$!"
    start dense "${without[@]}"
    wait "$!"
else
    # Side by side, with half of the cores each, so that whatever else the machine does slows both down alike.
    log "pretraining with layer dropping and, at the same time, without"
    export OMP_NUM_THREADS=$((cores / 2))
    start pld
    first=$!
    start dense "${without[@]}"
    second=$!
    while kill -0 "$first" 2>/dev/null && kill -0 "$second" 2>/dev/null; do
        sleep 1
    done
    # The one that ended comes first, so that a failure ends this script, and `stop` the other run.
    kill -0 "$first" 2>/dev/null || wait "$first"
    wait "$second"
    wait "$first"
    unset OMP_NUM_THREADS
fi

log "export to Hugging Face, and a filled [MASK]"
python -m bert_pld.export --checkpoint "$out/pld" --output_dir "$out/hugging_face" --overwrite
python scripts/fill_mask.py "$out/hugging_face" \
    "Return a list of [MASK] from the file." \
    "If the key is not [MASK], a KeyError is raised."

log "result"
python -m bert_pld.plot "$out/pld" "$out/dense" --output "$out/loss.png"
python scripts/measure/compare_runs.py "$out/pld" "$out/dense"
log "done; plot: $out/loss.png"
