#!/usr/bin/env bash
# Everything that only a GPU can tell, in one command, on an offline host that has torch and triton.
#
#   OUT=results bash scripts/gpu_check.sh [STAGE …]      from the checkout; all stages without arguments
#
#   tests     pytest -m gpu: kernels, the fused model and training on the device                          3 minutes
#   curves    200 steps of `small` in bf16 and fp16, triton against reference, three seeds                2
#   kernels   each fused kernel, forward and backward, against copy bandwidth, eager, compiled, Apex      5
#   base      training steps of BERT-base: Hugging Face, ours, layer dropping, under one DeepSpeed JSON   5
#   large     the same of BERT-large                                                                      5
#   deepspeed DeepSpeed's own fused layer in fp16, which it builds first                                   7
#   sweep     other tile sizes for each kernel                                                            5
#   saving    what a checkpoint costs, beside training and waited for                                     1
#   quality   time to a held-out loss beside Hugging Face's classes, BERT-small; needs SHARDS              8
#   paper     the paper's variants at the scale `gpu`, going on where it stopped; needs SHARDS          hours
#
# The last two are not among `all`. SHARDS is what `data_prep build --seq_length 128` made, RUNS (default
# $OUT/paper) where the variants' runs are kept.
#
# What the host lacks lies as wheels in .whl/ (scripts/gpu_wheels.sh fetches them) and is installed into a folder of its
# own. Prints a short table a stage; writes JSON and one log to $OUT. Exit 1 if any stage failed.
set -uo pipefail
cd "$(dirname "$0")/.."
export OUT="${OUT:-gpu_check_results}" PYTHONUNBUFFERED=1

stages=()
for name in "${@:-all}"; do
    case "$name" in
    all) stages+=(tests curves kernels base large deepspeed sweep saving) ;;
    tests | curves | kernels | base | large | deepspeed | sweep | saving) stages+=("$name") ;;
    quality | paper)
        if ! [ -d "${SHARDS:-}" ]; then
            echo "error: $name: SHARDS '${SHARDS:-}' is no folder; must be what data_prep build --seq_length 128 made" >&2
            exit 2
        fi
        stages+=("$name")
        ;;
    *)
        echo "error: $name: must be of all, tests, curves, kernels, base, large, deepspeed, sweep, saving, quality, paper" >&2
        exit 2
        ;;
    esac
done
python3 -c 'import torch, triton; raise SystemExit(not torch.cuda.is_available())' || {
    echo "error: needs a host with a GPU, torch and triton ($(command -v python3) sees none)" >&2
    exit 1
}
mkdir -p "$OUT"
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
if compgen -G ".whl/*.whl" >/dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl || exit 1
fi
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" PATH="$site/bin:$PATH"
python3 - <<'PYTHON' || exit 1
import torch, triton, transformers, deepspeed
print(torch.cuda.get_device_name(), "torch", torch.__version__, "triton", triton.__version__,
      "transformers", transformers.__version__, "deepspeed", deepspeed.__version__)
PYTHON

failed=0
stage() { # NAME LINES COMMAND…: run it into the log, show the end of what it said
    local name="$1" lines="$2" began=$SECONDS
    shift 2
    echo "== $name: $*" | tee -a "$OUT/gpu_check.log"
    "$@" >"$OUT/.stage.log" 2>&1 || { echo "FAILED: $name (exit $?)"; failed=1 lines=40; }
    cat "$OUT/.stage.log" >>"$OUT/gpu_check.log"
    tail -n "$lines" "$OUT/.stage.log" | cut -c1-200
    echo "   $((SECONDS - began)) s"
    rm -f "$OUT/.stage.log"
}
bench() { python3 -m benchmarks "$@"; }
train=(train --vocab_size 30528 --dtypes bf16 --rounds 4 --steps_per_round 16)
peers=hf_bert,hf_bert_compiled,hf_megatron,reference,compiled,triton,pld_batch,pld_sample

for name in "${stages[@]}"; do
    case "$name" in
    tests) stage tests 15 python3 -m pytest -m gpu -q -n 6 --ignore tests/data_prep tests ;; # whose libraries are not there
    curves) stage curves 12 bench curves --dtypes bf16,fp16 --json "$OUT/curves.json" ;;
    kernels) stage kernels 45 bench kernels --json "$OUT/kernels.json" ;;
    base) stage base 25 bench "${train[@]}" --model_preset base --micro_batch_size 256 --contenders "$peers" \
        --json "$OUT/base.json" ;;
    large) stage large 25 bench "${train[@]}" --model_preset large --micro_batch_size 128 --contenders "$peers" \
        --json "$OUT/large.json" ;;
    deepspeed) stage deepspeed 15 bench train --vocab_size 30528 --model_preset base --micro_batch_size 64 --dtypes fp16 \
        --contenders deepspeed_transformer,reference,triton --rounds 4 --json "$OUT/deepspeed_layer.json" ;;
    sweep) stage sweep 45 bench kernels --sweep --peers none --tokens 32768 --hidden 1024 --json "$OUT/sweep.json" ;;
    saving) stage saving 10 bench checkpoint --model_preset base --micro_batch_size 128 --steps_per_block 100 \
        --folder "${TMPDIR:-/tmp}" --json "$OUT/checkpoint.json" ;;
    quality) stage quality 15 bench quality --deepspeed_config configs/bert_small_pld_128.json \
        --data_dir "$SHARDS" --set training.max_steps=1000 --set training.eval_interval=100 \
        --contenders hf_bert,hf_bert_compiled,hf_megatron,hf_megatron_compiled,post,pre,pld_batch,pld_sample \
        --json "$OUT/quality.json" ;;
    paper) stage paper 5 python3 -m benchmarks paper run --scale gpu --seeds 1 \
        --data_dir "$SHARDS" --output_dir "${RUNS:-$OUT/paper}"
        stage paper_table 15 python3 -m benchmarks paper summarize "${RUNS:-$OUT/paper}" --json "$OUT/paper_gpu.json" ;;
    esac
done
exit $failed
