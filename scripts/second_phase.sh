#!/usr/bin/env bash
# BERT's second phase after a run on 48 M tokens (scale cpu_long, recipe_cpu_8_long, recipe_cpu_8_large_batch or
# recipe_cpu_8_mask_15): an eighth as many tokens, in sequences of 64 instead of 32 and batches of 64, at a quarter of the
# peak learning rate.
#
#   bash scripts/second_phase.sh RUN_DIR DATA_DIR OUTPUT_DIR [--set section.key=value …]
#
# DATA_DIR: of `data_prep build --seq_length 32 64`. More arguments are those of `pretrain`.
# The paper's schedule stays at its limit, θ. Dropping by token starts at once and finishes dense. A second run resumes
# an interrupted one. Requires the environment of scripts/environment.sh.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: bash scripts/second_phase.sh RUN_DIR DATA_DIR OUTPUT_DIR [--set section.key=value …]" >&2
    exit 1
fi
if ! [ -f "$1/given.json" ]; then
    echo "error: $1: has no given.json; must be the folder of a run of benchmarks paper" >&2
    exit 1
fi
given=$1/given.json
has() { grep -q "\"$1\"" "$given"; } # whether the run's JSON has a key
changes=(data.seq_length=64 train_batch_size=64 train_micro_batch_size_per_gpu=64 scheduler.params.warmup_num_steps=50
    training.max_steps=1500 training.eval_interval=250)
rates="$(python - "$given" <<'PYTHON'
import json, sys
params = json.load(open(sys.argv[1], encoding="utf-8")).get("optimizer", {}).get("params", {})
if not isinstance(params.get("lr"), (int, float)):
    raise SystemExit(f"error: {sys.argv[1]}: optimizer.params.lr: {params.get('lr')!r}; must be a number")
for name in ("lr", "muon_lr"):
    if name in params:
        print(f"optimizer.params.{name}={params[name] / 4!r}")
PYTHON
)" || exit 1
mapfile -t -O "${#changes[@]}" changes <<<"$rates"
if has decay_step; then
    changes+=(scheduler.params.decay_step=8)
fi
if has dense_warmup; then
    changes+=(progressive_layer_drop.dense_warmup=0)
elif has theta; then
    changes+=(progressive_layer_drop.temporal=constant progressive_layer_drop.gamma=0)
fi
python -m bert_pld.pretrain --deepspeed_config "$given" --initialize_from "$1" --data_dir "$2" \
    --output_dir "$3" "${changes[@]/#/--set=}" "${@:4}"
