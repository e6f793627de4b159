#!/usr/bin/env bash
# Submits the two phases of BERT as two jobs: most steps at 128 tokens, then the rest at 512 tokens from those weights.
#
#   export DATA_DIR=shards OUTPUT_DIR=runs/base        shards for both lengths: `data_prep build --seq_length 128 512`
#   bash scripts/slurm/two_phases.sh --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8
#
#   CONFIG_128      default configs/bert_base_pld_128.json
#   CONFIG_512      default configs/bert_base_pld_512.json
#
# All arguments are passed to sbatch, for both jobs. The second job waits until the first one has succeeded, even if
# that one is requeued: it keeps its id. Run the script in the checkout, or set REPOSITORY. It prints both job ids.
set -euo pipefail
export REPOSITORY="${REPOSITORY:-$PWD}"
: "${DATA_DIR:?shards of data_prep build --seq_length 128 512}" "${OUTPUT_DIR:?parent folder of both runs}"
script="$REPOSITORY/scripts/slurm/pretrain.sbatch"
[ -f "$script" ] || {
    echo "error: REPOSITORY=$REPOSITORY: not a checkout of bert_pld" >&2
    exit 1
}

submit() { # NAME CONFIG SBATCH-ARGUMENTS…
    local name="$1" config="$2"
    shift 2
    OUTPUT_DIR="$OUTPUT_DIR/$name" CONFIG="$config" sbatch --parsable --job-name="bert_pld_$name" "$@" "$script"
}
first_job="$(submit phase_128 "${CONFIG_128:-configs/bert_base_pld_128.json}" "$@")"
first_job="${first_job%%;*}" # a federation appends the name of the cluster
second_job="$(INITIALIZE_FROM="$OUTPUT_DIR/phase_128" submit phase_512 "${CONFIG_512:-configs/bert_base_pld_512.json}" \
    --dependency="afterok:$first_job" --kill-on-invalid-dep=yes "$@")"
echo "$first_job ${second_job%%;*}"
