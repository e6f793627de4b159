#!/usr/bin/env bash
# Fresh machine → environment → linters → all tests. Arguments go to pytest: bash scripts/test.sh -k resume
#
# BERT_PLD_REQUIRE_SLURM   1: install Slurm and libaio from Debian's packages (needs root) and fail Slurm's tests if they
#                          cannot run (default where CI is set, and in .ci/run); otherwise tests are skipped where
#                          either is missing
# BERT_PLD_THOROUGH        1: also run tests that repeat another one with one more setting, or measure for long
# BERT_PLD_KILLS           how often the tests of interruption kill a process (default: 12 and 8)
# BERT_PLD_FUZZ_CASES      how many cases of random damage each test of damaged files tries (default: 40, and 15 with
#                          pytest alone)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh all,test

export BERT_PLD_FUZZ_CASES="${BERT_PLD_FUZZ_CASES:-40}"
export BERT_PLD_REQUIRE_SLURM="${BERT_PLD_REQUIRE_SLURM:-${CI:+1}}"
if [ "$BERT_PLD_REQUIRE_SLURM" = 1 ] &&
    ! { [ -x /usr/sbin/slurmctld ] && [ -x /usr/sbin/munged ] && [ -f /usr/include/libaio.h ]; }; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge libaio-dev
fi
if [ $# -eq 0 ] && [ -n "${BERT_PLD_THOROUGH:-}" ] && [ -f /usr/include/libaio.h ]; then
    # Compiles for minutes, on the core that the next steps leave free; the tests that need it wait for it.
    python -c 'from deepspeed.ops.op_builder import AsyncIOBuilder; AsyncIOBuilder().load(verbose=False)' \
        >/dev/null 2>&1 &
fi
# Releases that the pinned one is compared with, each in a folder of its own beside the packages of the environment.
for release in 0.16.9 ${BERT_PLD_THOROUGH:+0.19.6}; do
    folder="$(python -c 'import sys; print(sys.prefix)')/deepspeed-$release"
    if ! [ -d "$folder" ]; then
        rm -rf "$folder.partial"
        DS_BUILD_OPS=0 python -m pip install --quiet --no-deps --no-build-isolation --no-compile \
            --target "$folder.partial" "deepspeed==$release" && mv "$folder.partial" "$folder" ||
            echo "warning: deepspeed $release cannot be installed; its tests are skipped" >&2
    fi
done

ruff format --check .
ruff check .
mypy
if [ $# -eq 0 ]; then
    # Compiles every kernel for GPUs that this machine need not have; fails if registers spill.
    env -u TRITON_INTERPRET python -m bert_pld.compile_kernels
fi
# All tests, where `pytest` alone runs tests/unit. One process per core; the tests of one file share their runs, so a
# file is not divided.
exec python -m pytest -o testpaths=tests -n "$(env -u OMP_NUM_THREADS nproc)" --dist loadfile "$@"
