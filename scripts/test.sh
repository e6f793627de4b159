#!/usr/bin/env bash
# Fresh machine → environment → linters → all tests. Arguments go to pytest: bash scripts/test.sh -k resume
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh tensorboard,test

ruff format --check .
ruff check .
mypy
exec python -m pytest "$@"
