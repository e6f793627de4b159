#!/usr/bin/env bash
# Fetch into .whl/ what scripts/gpu_check.sh needs on an offline host that has torch, triton and transformers already.
#
#   bash scripts/gpu_wheels.sh [PYTHON_VERSION]      the host's Python (default 3.12); about 6 MB
set -euo pipefail
cd "$(dirname "$0")/.."
version="${1:-3.12}"
mkdir -p .whl
pin() { grep -E "^$1==" scripts/constraints.txt | cut -d' ' -f1; }
# DeepSpeed is published as source; without its compiled operations it is one wheel for every Python.
DS_BUILD_OPS=0 python3 -m pip wheel -q --no-deps --no-build-isolation -w .whl "$(pin deepspeed)"
for package in hjson msgpack pydantic pydantic_core annotated-types typing-inspection py-cpuinfo; do
    python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$version" -d .whl "$(pin $package)"
done
ls -l .whl
