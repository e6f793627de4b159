#!/usr/bin/env bash
# Fetch into .whl/ what the stages of scripts/gpu_check.sh import, for an offline host that has torch and triton alone.
#
#   bash scripts/gpu_wheels.sh [PYTHON_VERSION]      Python version of the host, Linux on x86-64 (default 3.12); 50 MiB
#
# Requires a network and the environment of scripts/environment.sh, whose setuptools and torch build DeepSpeed's wheel.
# DeepSpeed, transformers and pytest with all that they need, and what reads shards and writes checkpoints. Left out:
# torch and triton, which bring a gigabyte of CUDA; scipy, which is as large as all others and which only `curves`,
# `recipe` and `paper` need; hf-xet, which only downloads models; and what no stage imports (matplotlib, the packages of
# data preparation). gpu_check.sh installs what its host lacks.
set -euo pipefail
cd "$(dirname "$0")/.."
version="${1:-3.12}"
packages=(h5py safetensors tokenizers tqdm transformers pytest pytest-xdist)
LIMIT_MIB=56 # A host may limit what it takes to 64 MiB; the checkout is 6.
platforms=()
for name in manylinux1 manylinux2010 manylinux2014 manylinux_2_{5,12,17,24,27,28}; do
    platforms+=(--platform "${name}_x86_64")
done
rm -rf .whl
mkdir .whl
# DeepSpeed is published as source only. Without compiled operations it is one wheel for every Python.
DS_BUILD_OPS=0 python3 -m pip wheel -q --no-deps --no-build-isolation -w .whl \
    "$(grep -E '^deepspeed==' scripts/constraints.txt | cut -d' ' -f1)"
needed="$(python3 - .whl/deepspeed-*.whl <<'PYTHON'
import sys, zipfile
from email.parser import Parser
with zipfile.ZipFile(sys.argv[1]) as wheel:
    metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    requirements = Parser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist")
print(*(line for line in requirements if ";" not in line and line.split(">")[0].strip() != "torch"), sep="\n")
PYTHON
)"
mapfile -t -O "${#packages[@]}" packages <<<"$needed"
python3 -m pip download -q --only-binary=:all: --implementation cp --python-version "$version" "${platforms[@]}" \
    -c scripts/constraints.txt -d .whl "${packages[@]}"
rm -f .whl/hf_xet-*.whl
ls -lS .whl
if [ "$(du -sm .whl | cut -f1)" -gt "$LIMIT_MIB" ]; then
    echo "error: .whl: $(du -sm .whl | cut -f1) MiB; must be at most $LIMIT_MIB" >&2
    exit 1
fi
