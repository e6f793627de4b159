#!/usr/bin/env bash
# Fetch into .whl/ the packages that scripts/gpu_check.sh needs on an offline host with torch, triton and transformers.
#
#   bash scripts/gpu_wheels.sh [PYTHON_VERSION]      Python version of the host (default 3.12); about 6 MB
set -euo pipefail
cd "$(dirname "$0")/.."
version="${1:-3.12}"
mkdir -p .whl
pin() { grep -E "^$1==" scripts/constraints.txt | cut -d' ' -f1; }
# DeepSpeed is published as source only. Without compiled operations it is one wheel for every Python.
DS_BUILD_OPS=0 python3 -m pip wheel -q --no-deps --no-build-isolation -w .whl "$(pin deepspeed)"
for package in hjson msgpack pydantic pydantic_core annotated-types typing-inspection py-cpuinfo; do
    python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$version" -d .whl "$(pin $package)"
done
ls -l .whl
