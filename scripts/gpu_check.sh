#!/usr/bin/env bash
# Everything that only a GPU can tell, in one command, on an offline host that has torch and triton.
#
#   OUT=results bash scripts/gpu_check.sh       from the checkout; wheels torch's host lacks lie in .whl/
#
# Installs .whl/*.whl (if any) into a folder of its own, runs `pytest -m gpu`, the training benchmark, and 200 steps of `small`
# with and without layer dropping; prints a short table and writes JSON to $OUT.
set -uo pipefail
cd "$(dirname "$0")/.."
export OUT="${OUT:-gpu_check_results}" PYTHONUNBUFFERED=1
mkdir -p "$OUT"
site="$(mktemp -d)"
if compgen -G ".whl/*.whl" >/dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl || exit 1
fi
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" PATH="$site/bin:$PATH"
python3 -c 'import torch; assert torch.cuda.is_available(), "no GPU here"; print(torch.cuda.get_device_name())' || exit 1

failed=0
step() {
    local name="$1"
    shift
    echo "== $name"
    "$@" >"$OUT/$name.log" 2>&1 || { failed=1; echo "failed: $name"; tail -15 "$OUT/$name.log"; }
}
step tests python3 -m pytest -m gpu -q tests
step bench_base python3 -m bert_pld.bench train --model_preset base --vocab_size 30528 --micro_batch_size 64 \
    --rounds 5 --steps_per_round 16 --contenders hugging_face,reference,compiled,pld_batch,pld_sample \
    --json "$OUT/bench_base.json"
tail -25 "$OUT/bench_base.log"
exit $failed
