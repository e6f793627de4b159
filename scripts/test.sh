#!/usr/bin/env bash
# Fresh machine → environment → linters → all tests. Arguments go to pytest: bash scripts/test.sh -k resume
#
# BERT_PLD_REQUIRE_SLURM   1: the tests of Slurm, for which Debian's packages are installed, fail where they cannot run
#                          (default where CI is set, and in .ci/run); 0: they are skipped there
# BERT_PLD_THOROUGH        1: also the tests that repeat another for one more setting
# BERT_PLD_KILLS           how often the tests of interruption kill what they watch (default: 12 and 8)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh all,test

export BERT_PLD_REQUIRE_SLURM="${BERT_PLD_REQUIRE_SLURM:-${CI:+1}}"
ruff format --check .
ruff check .
mypy
if [ $# -eq 0 ]; then
    # Every kernel compiled for GPUs that need not be here: the report, and a failure if registers spill.
    env -u TRITON_INTERPRET python -m bert_pld.compile_kernels
fi
# A process a core; the tests of one file share their runs.
exec python -m pytest -n "$(nproc)" --dist loadfile "$@"
