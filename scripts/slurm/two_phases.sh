#!/usr/bin/env bash
# The two phases of BERT as two jobs: most steps at 128 tokens, then the last ones at 512 from their weights.
#
#   export DATA_DIR=shards OUTPUT_DIR=runs/base        shards: of `data_prep build --seq_length 128 512`
#   bash scripts/slurm/two_phases.sh --nodes=4 --ntasks-per-node=8 --gpus-per-node=8
#
#   CONFIG_128      default configs/bert_base_pld_128.json
#   CONFIG_512      default configs/bert_base_pld_512.json
#
# Arguments go to sbatch, for both jobs. The second waits for the first to end well, however often that is preempted and
# queued again; a job keeps its number. Call it in the checkout, or set REPOSITORY. Prints both numbers.
set -euo pipefail
export REPOSITORY="${REPOSITORY:-$PWD}"
: "${DATA_DIR:?what data_prep build --seq_length 128 512 made}" "${OUTPUT_DIR:?the folder of both runs}"
script="$REPOSITORY/scripts/slurm/pretrain.sbatch"
[ -f "$script" ] || {
    echo "error: REPOSITORY=$REPOSITORY: not a checkout of bert_pld" >&2
    exit 1
}

phase() { # NAME CONFIG SBATCH-ARGUMENTS…
    local name="$1" config="$2"
    shift 2
    OUTPUT_DIR="$OUTPUT_DIR/$name" CONFIG="$config" sbatch --parsable --job-name="bert_pld_$name" "$@" "$script"
}
first="$(phase phase_128 "${CONFIG_128:-configs/bert_base_pld_128.json}" "$@")"
first="${first%%;*}" # a federation adds its cluster's name
second="$(INITIALIZE_FROM="$OUTPUT_DIR/phase_128" phase phase_512 "${CONFIG_512:-configs/bert_base_pld_512.json}" \
    --dependency="afterok:$first" --kill-on-invalid-dep=yes "$@")"
echo "$first ${second%%;*}"
