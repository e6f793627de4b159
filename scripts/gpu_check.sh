#!/usr/bin/env bash
# What only a GPU can show, in one run of at most nine minutes, on an offline host that has torch and triton.
#
#   OUT=results bash scripts/gpu_check.sh                    the default stages
#   OUT=results bash scripts/gpu_check.sh again [STAGE …]    at most four minutes: base and large, or the named stages
#   OUT=results bash scripts/gpu_check.sh STAGE …            the named stages, for as long as they may take
#   bash scripts/gpu_check.sh --dry-run …                    print the stages and when each one must end
#
# Default stages, in this order:
#   tests      pytest -m gpu: kernels and the fused model; meanwhile Hugging Face's model is compiled for `base`
#   base       training steps of BERT-base: Hugging Face compiled, Triton kernels, dropping by batch, sample and token
#   host       BERT-base in small micro-batches, with and without CUDA graphs: what the host costs
#   training   pytest -m gpu: training runs, ZeRO 1 and 3, dropping by token, Muon, resume
#   large      as `base`, BERT-large, also with FP8 products
#   kernels    embeddings, add_norm and bias_gelu beside a copy's bandwidth, the last two with other tile sizes
#   graphs     pytest -m gpu: CUDA graphs
# By name only:
#   muon       `base` for one round with Muon, at full depth and dropping by token
#   cudnn      `base` for one round without cuDNN's attention
#   deepspeed  DeepSpeed's own fused layer in fp16; builds it first       saving   what a checkpoint costs
#   curves     loss curves of two backends, six seeds                     sweep    all tile sizes of every kernel
#   quality    time to a held-out loss beside Hugging Face's classes; needs SHARDS
#   modern     pytest -m gpu: ModernBERT, and rows of several documents
#   recipe     dropping by token beside dense runs of equal steps and of equal compute; resumes; needs SHARDS
#   paper      the paper's variants at the scale `gpu`; hours; resumes; needs SHARDS
#
# OUT     folder for one log and one JSON file for each benchmark (default: gpu_check_results)
# SHARDS  a folder of `data_prep build --seq_length 128`
# RUNS    where `recipe` and `paper` keep their runs (default: $OUT/recipe, $OUT/paper)
#
# Relative paths start at the repository's root. A stage must end when its own limit and what the stages before it left
# unused are spent; then it is killed. A stage that fails or is killed does not stop the others. Packages that the host
# lacks are installed from .whl/ (scripts/gpu_wheels.sh fetches them) into a temporary folder. Before the first stage,
# `setup` imports every package that a chosen stage needs, and names those that it cannot. At the end, a table is
# printed; docs/gpu.md explains what to look at. Exit 1 if a stage failed.
set -uo pipefail
cd "$(dirname "$0")/.."
export OUT="${OUT:-gpu_check_results}" PYTHONUNBUFFERED=1
# Otherwise `torch.cuda.is_available` initialises CUDA, and a process forked afterwards cannot use the GPU.
export PYTORCH_NVML_BASED_CUDA_CHECK=1
# Fixed, so that a later stage or run does not compile again.
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-${TMPDIR:-/tmp}/bert_pld_triton}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-${TMPDIR:-/tmp}/bert_pld_inductor}"

declare -A LIMIT_S=(
    [setup]=40 [tests]=110 [base]=90 [host]=65 [training]=50 [large]=75 [kernels]=40 [graphs]=30
    [muon]=40 [cudnn]=40 [deepspeed]=540 [saving]=120 [curves]=480 [sweep]=400 [quality]=900 [modern]=150
    [recipe]=400 [paper]=86400
)
KILL_S=5 # between SIGTERM and SIGKILL
TOTAL_S="" dry=""
if [ "${1:-}" = --dry-run ]; then
    dry=1 && shift
fi
if [ $# -eq 0 ]; then
    TOTAL_S=540
    set -- tests base host training large kernels graphs
elif [ "$1" = again ]; then
    TOTAL_S=240
    shift
    [ $# -gt 0 ] || set -- base large
fi
for name in "$@"; do
    if [ "$name" = setup ] || [ -z "${LIMIT_S[$name]:-}" ]; then
        echo "error: $name: must be one of tests, base, host, training, large, kernels, graphs, muon, cudnn," \
            "deepspeed, saving, curves, sweep, quality, modern, recipe, paper" >&2
        exit 2
    fi
    if [[ "$name" =~ ^(quality|recipe|paper)$ ]] && ! [ -d "${SHARDS:-}" ]; then
        echo "error: $name: SHARDS '${SHARDS:-}' is not a folder; must be one of data_prep build --seq_length 128" >&2
        exit 2
    fi
done

end_s=0
end_of() { # NAME: sets end_s, the second of this run at which the stage must have ended, killed or not
    end_s=$((end_s + LIMIT_S[$1] + KILL_S))
    [ -z "$TOTAL_S" ] || [ "$end_s" -le "$TOTAL_S" ] || end_s="$TOTAL_S"
}
if [ -n "$dry" ]; then
    for name in setup "$@"; do
        end_of "$name"
        printf '%-10s limit %5d s, must end at %5d s\n' "$name" "${LIMIT_S[$name]}" "$end_s"
    done
    exit 0
fi

mkdir -p "$OUT"
log="$OUT/gpu_check.log"
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" PATH="$site/bin:$PATH"
failed=0 table=""

limited() { # COMMAND…: run it, at most until the stage's end
    local left=$((end_s - KILL_S - SECONDS))
    timeout -k "$KILL_S" "$((left > 0 ? left : 1))" "$@"
}
stage() { # NAME LINES COMMAND…: run it into the log and show its last lines
    local name="$1" lines="$2" began=$SECONDS code=0
    shift 2
    end_of "$name"
    echo "== $name (at most $((end_s - KILL_S - began)) s): $*" | tee -a "$log"
    if [ $((end_s - KILL_S)) -le "$began" ]; then
        code="no time left"
    else
        "$@" >"$OUT/.stage" 2>&1 || code="exit $?"
        [ "$code" = 0 ] || lines=40
        cat "$OUT/.stage" >>"$log"
        tail -n "$lines" "$OUT/.stage" | cut -c1-200
        rm -f "$OUT/.stage"
    fi
    case "$code" in
    0) code=ok ;;
    "exit 124" | "exit 137") code="FAILED: killed at its limit" ;;
    *) code="FAILED: $code" ;;
    esac
    [ "$code" = ok ] || failed=1
    table+="$(printf '%-10s %5d s  %s' "$name" $((SECONDS - began)) "$code")"$'\n'
}
modules=(torch triton numpy deepspeed transformers)
shards=(h5py safetensors tokenizers tqdm) # read shards, write checkpoints
for name in "$@"; do
    case "$name" in
    tests | training | modern | graphs) modules+=(pytest xdist "${shards[@]}") ;;
    saving | quality) modules+=("${shards[@]}") ;;
    recipe | paper) modules+=("${shards[@]}" scipy) ;;
    curves) modules+=(scipy) ;;
    esac
done
setup() { # MODULE…
    local wheels
    if compgen -G ".whl/*.whl" >/dev/null; then
        wheels="$(limited python3 - .whl/*.whl <<'PYTHON'
import importlib.metadata, os, sys
for wheel in sys.argv[1:]:
    try:
        importlib.metadata.version(os.path.basename(wheel).split("-")[0])
    except importlib.metadata.PackageNotFoundError:
        print(wheel)
PYTHON
)" || return
        # shellcheck disable=SC2086 # one word for each wheel
        [ -z "$wheels" ] || limited python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
            --target "$site" $wheels || return
    fi
    limited python3 - "$@" <<'PYTHON'
import importlib, sys
missing = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"{name}: {' '.join(str(error).split())}")
        missing.append(name)
if missing:
    names = ", ".join(missing)
    raise SystemExit(f"error: cannot import {names}; scripts/gpu_wheels.sh fetches all but torch, triton and scipy")
import deepspeed, torch, transformers, triton
if not torch.cuda.is_available():
    raise SystemExit("error: torch sees no GPU")
print(torch.cuda.get_device_name(), "torch", torch.__version__, "triton", triton.__version__,
      "transformers", transformers.__version__, "deepspeed", deepspeed.__version__)
PYTHON
}
bench() { limited python3 -m benchmarks "$@"; }
workers=$(($(nproc) * 3 / 4)) # most tests wait for Triton's compiler
workers=$((workers < 2 ? 2 : workers > 12 ? 12 : workers))
# -v, so that the log of a killed stage says which tests failed. A run takes longer than its file's fixtures.
gpu_tests() { limited python3 -m pytest -m gpu -v -n "$workers" --dist load -p no:benchmark "$@"; }
train() { # PRESET MICRO_BATCH ARGUMENTS…
    bench train --vocab_size 30528 --dtypes bf16 --steps_per_round 8 --model_preset "$1" --micro_batch_size "$2" "${@:3}"
}
BASE=512 LARGE=256 # sequences of a micro-batch: with fewer, the device waits for a slow host
first_tests() {
    local code=0
    # Only fills the compile cache; `base` reports whether it works.
    train base "$BASE" --contenders hf_bert_compiled --rounds 1 --steps_per_round 2 >>"$log" 2>&1 &
    gpu_tests tests/unit/kernels tests/gpu/test_fused_on_gpu.py || code=$?
    wait
    return "$code"
}
quality() { # The paper's JSON at the size `small`, with warm-up and decay shortened as the number of steps is.
    local changes=(model.preset=small train_batch_size=32 train_micro_batch_size_per_gpu=32
        scheduler.params.warmup_num_steps=100 scheduler.params.decay_step=5 progressive_layer_drop.gamma=auto
        training.max_steps=1000 training.eval_interval=100)
    bench quality --deepspeed_config configs/paper/pld_batch.json --data_dir "$SHARDS" "${changes[@]/#/--set=}" \
        --contenders hf_bert,hf_bert_compiled,hf_megatron,hf_megatron_compiled,post,pre,pld_batch,pld_sample \
        --json "$OUT/quality.json"
}
paper() {
    bench paper run --scale gpu --seeds 1 --data_dir "$SHARDS" --output_dir "${RUNS:-$OUT/paper}" &&
        bench paper summarize "${RUNS:-$OUT/paper}" --json "$OUT/paper_gpu.json"
}
recipe() {
    local code=0
    bench paper run --scale recipe_gpu --seeds 1 --variants dense_muon tokens_same_40_muon dense_muon_equal_compute \
        --data_dir "$SHARDS" --output_dir "${RUNS:-$OUT/recipe}" || code=$?
    # Also what a killed suite has finished.
    python3 -m benchmarks paper summarize "${RUNS:-$OUT/recipe}" --baseline dense_muon --json "$OUT/recipe_gpu.json" &&
        return "$code"
}
host() {
    local rows code=0
    for rows in 8 64; do
        train base "$rows" --contenders triton,triton_graphs,pld_batch,pld_token,pld_token_graphs --rounds 2 \
            --profile --json "$OUT/host_$rows.json" || code=$?
    done
    return "$code"
}
without_cudnn() { TORCH_CUDNN_SDPA_DEPRIORITIZED=1 train base "$BASE" --contenders triton,pld_sample,pld_token --rounds 1 "$@"; }

stage setup 3 setup "${modules[@]}"
if [ "$failed" -ne 0 ]; then
    echo "error: needs a host with a GPU, torch and triton, and .whl/ for what else is missing (see above)" >&2
    exit 1
fi
for name in "$@"; do
    case "$name" in
    tests) stage "$name" 5 first_tests ;;
    base) stage "$name" 32 train base "$BASE" --rounds 3 --profile --json "$OUT/base.json" \
        --contenders hf_bert_compiled,triton,pld_batch,pld_sample,pld_token ;;
    host) stage "$name" 32 host ;;
    training) stage "$name" 5 gpu_tests tests/gpu/test_training_on_gpu.py -k "fused_blocks or resumed" ;;
    large) stage "$name" 32 train large "$LARGE" --rounds 3 --profile --json "$OUT/large.json" \
        --contenders hf_bert_compiled,triton,triton_fp8,pld_batch,pld_token ;;
    muon) stage "$name" 15 train base "$BASE" --optimizer Muon --contenders triton,pld_token,pld_token_same --rounds 1 \
        --json "$OUT/muon.json" ;;
    kernels) stage "$name" 30 bench kernels --peers none --tokens 32768 --hidden 768 \
        --operations embed,add_norm,bias_gelu --sweep --rounds 5 --json "$OUT/kernels.json" ;;
    cudnn) stage "$name" 15 without_cudnn --json "$OUT/cudnn.json" ;;
    deepspeed) stage "$name" 15 bench train --vocab_size 30528 --model_preset base --micro_batch_size 64 --dtypes fp16 \
        --contenders deepspeed_transformer,reference,triton --rounds 4 --json "$OUT/deepspeed_layer.json" ;;
    saving) stage "$name" 10 bench checkpoint --model_preset base --micro_batch_size 128 --steps_per_block 100 \
        --folder "${TMPDIR:-/tmp}" --json "$OUT/checkpoint.json" ;;
    curves) stage "$name" 12 bench curves --dtypes bf16,fp16 --json "$OUT/curves.json" ;;
    sweep) stage "$name" 45 bench kernels --sweep --peers none --tokens 32768 --hidden 1024 --json "$OUT/sweep.json" ;;
    quality) stage "$name" 15 quality ;;
    modern) stage "$name" 5 gpu_tests tests/gpu/test_modern_on_gpu.py tests/gpu/test_packed_documents_on_gpu.py ;;
    graphs) stage "$name" 5 gpu_tests tests/gpu/test_graphs_on_gpu.py ;;
    recipe) stage "$name" 20 recipe ;;
    paper) stage "$name" 15 paper ;;
    esac
done
printf '\n%s' "$table" | tee -a "$log"
exit "$failed"
