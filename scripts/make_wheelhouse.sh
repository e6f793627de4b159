#!/usr/bin/env bash
# Fetch every wheel that an installation without a network needs into one folder, with a list of SHA-256 (docs/clusters.md).
#
#   bash scripts/make_wheelhouse.sh [--python 3.11] [--platform manylinux_2_28_x86_64] [--torch_index URL]
#       [--extras all,test] FOLDER
#
# --python       Python of the machines without a network, also needed here (default: that of PYTHON, or python3)
# --platform     manylinux_2_N_MACHINE: wheels for glibc 2.N and newer (default: 2.28); MACHINE must be this machine's
# --torch_index  index of torch, e.g. https://download.pytorch.org/whl/cpu (default: pip's index, the CUDA build)
# --extras       extras of setup.py (default: all)
#
# A second run fetches only missing and damaged wheels; pip's cache keeps complete downloads of an interrupted one. The
# folder does not hold the checkout, which is installed with `pip install -e`.
set -euo pipefail
invoked_from="$PWD"
cd "$(dirname "$0")/.."
fail() { echo "error: $*" >&2; exit 1; }

python="" platform="manylinux_2_28_$(uname -m)" torch_index="" extras=all folder=""
while [ $# -gt 0 ]; do
    case "$1" in
    --python | --platform | --torch_index | --extras)
        [ -n "${2:-}" ] || fail "$1: needs a value"
        printf -v "${1#--}" %s "$2"
        shift 2
        ;;
    -*) fail "$1: must be --python, --platform, --torch_index or --extras" ;;
    *)
        [ -z "$folder" ] || fail "$1: only one FOLDER is allowed, and it is $folder"
        folder="$1"
        shift
        ;;
    esac
done
[ -n "$folder" ] || fail "FOLDER is missing: bash scripts/make_wheelhouse.sh [OPTIONS] FOLDER"
case "${python:-3.12}" in 3.10 | 3.11 | 3.12) ;; *) fail "--python $python: must be 3.10, 3.11 or 3.12" ;; esac
interpreter="${python:+python$python}"
interpreter="${interpreter:-${PYTHON:-python3}}"
# pip evaluates `; python_version >= …` for the interpreter that it runs in, even if --python-version differs.
version="$("$interpreter" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" ||
    fail "--python ${python:-(default)}: $interpreter does not run here; requirements depend on Python's version"
case "$version" in 3.10 | 3.11 | 3.12) ;; *) fail "$interpreter is Python $version: give --python 3.10, 3.11 or 3.12" ;; esac
[ -z "$python" ] || [ "$python" = "$version" ] || fail "--python $python: $interpreter is Python $version"
machine="$(uname -m)"
[[ "$platform" =~ ^manylinux_2_([0-9]+)_"$machine"$ ]] ||
    fail "--platform $platform: must be manylinux_2_N_$machine, N the glibc (ldd --version); wheels for others are made there"
glibc="${BASH_REMATCH[1]}"
[ "$glibc" -ge 17 ] || fail "--platform $platform: N must be 17 or more"
[[ "${torch_index:-https://}" =~ ^(https?|file):// ]] || fail "--torch_index $torch_index: must be an http(s):// or file:// URL"
requirements="$("$interpreter" - "$extras" <<'PYTHON'
import runpy, sys, types

given = {}  # setup.py runs with a stand-in, because environments of Python 3.12 have no setuptools
sys.modules["setuptools"] = types.ModuleType("setuptools")
sys.modules["setuptools"].find_packages = lambda **_: []
sys.modules["setuptools"].setup = lambda **arguments: given.update(arguments)
runpy.run_path("setup.py")
wanted = list(given["install_requires"])
for extra in filter(None, sys.argv[1].split(",")):
    if extra not in given["extras_require"]:
        raise SystemExit(f"error: --extras {extra}: must be one of {', '.join(given['extras_require'])}")
    wanted += given["extras_require"][extra]
# An empty virtual environment also needs these to install a checkout with `pip install -e`.
print(*wanted, "pip", "setuptools", "wheel", sep="\n")
PYTHON
)" || exit 1
mkdir -p "$(cd "$invoked_from" && realpath -m "$folder")" 2>/dev/null || fail "$folder: cannot be created"
folder="$(cd "$invoked_from" && realpath "$folder")"
[ -w "$folder" ] || fail "$folder: cannot be written to"

# The first line of the list; a folder that was made for something else is made again.
sources="$(cat setup.py scripts/constraints.txt | cksum | tr -d ' ')"
target="# python $version, $platform, extras $extras, torch of ${torch_index:-the index}, pins $sources"
if [ -f "$folder/SHA256SUMS" ] && [ "$(head -n 1 "$folder/SHA256SUMS")" = "$target" ] &&
    (cd "$folder" && grep -v '^#' SHA256SUMS | sha256sum --check --quiet) >/dev/null 2>&1; then
    echo "$folder: already complete; every SHA-256 matches"
    exit 0
fi
if [ -f "$folder/SHA256SUMS" ]; then # Remove damaged wheels, and the list until it is complete again.
    (cd "$folder" && grep -v '^#' SHA256SUMS | sha256sum --check 2>/dev/null | sed -n 's/: FAILED$//p' |
        xargs -rd '\n' rm -f) || true
    rm -f "$folder/SHA256SUMS"
fi

scratch="$(mktemp -d)"
partial="$folder/.partial"
mkdir -p "$partial"
echo "$requirements" >"$scratch/requirements.txt"
trap 'rm -rf "$scratch" "$partial"' EXIT
"$interpreter" -m venv "$scratch/venv" || fail "$interpreter -m venv failed: see above"
pip() {
    "$scratch/venv/bin/python" -m pip --disable-pip-version-check "$@" >"$scratch/pip.log" 2>&1
}
why() { grep -E '^ *ERROR' "$scratch/pip.log" | tail -n 1 | cut -c1-250 || tail -n 1 "$scratch/pip.log"; }
pip install --upgrade pip || fail "pip cannot be fetched: $(why)"

# 1. Published as source only. Without DeepSpeed's compiled operations, each is one wheel for every Python.
for name in deepspeed seqeval; do
    pinned="$(grep -E "^$name==" scripts/constraints.txt | cut -d' ' -f1 || true)"
    if grep -q "^$name" "$scratch/requirements.txt" && [ -n "$pinned" ] &&
        ! compgen -G "$folder/${pinned/==/-}-*-none-any.whl" >/dev/null; then
        echo "building $pinned"
        DS_BUILD_OPS=0 pip wheel --no-deps --wheel-dir "$partial" "$pinned" || fail "$pinned cannot be built: $(why)"
        mv "$partial/$name"-*-none-any.whl "$folder" || fail "$pinned: the wheel is not for every Python"
    fi
done

# 2. All others. pip keeps wheels that are in the folder already.
tags=()
for ((minor = glibc; minor >= 5; minor--)); do tags+=(--platform "manylinux_2_${minor}_$machine"); done
for name in manylinux2014 manylinux2010 manylinux1 linux; do tags+=(--platform "${name}_$machine"); done
wanted=(--only-binary=:all: --python-version "$version" --implementation cp "${tags[@]}" --find-links "$folder"
    -c scripts/constraints.txt -r "$scratch/requirements.txt")
echo "fetching for Python $version, $platform"
# That index's build of torch is chosen by its local version: pip prefers 2.13.0+cpu to 2.13.0.
pip download --dest "$folder" ${torch_index:+--extra-index-url "$torch_index"} "${wanted[@]}" ||
    fail "pip found no complete set of wheels: $(why); run again if the network failed; a package that is published as" \
        "compiled source only must be built on such a machine: pip wheel --no-deps NAME there, copy the wheel to" \
        "$folder, run again"

# 3. Resolve again from the folder alone: shows that it is complete, and which wheels belong to it.
pip install --dry-run --ignore-installed --no-index --target "$scratch/target" --report "$scratch/report.json" \
    "${wanted[@]}" || fail "$folder: incomplete: $(why)"
"$scratch/venv/bin/python" - "$scratch/report.json" >"$scratch/names" <<'PYTHON'
import json, sys
from pathlib import Path
from urllib.parse import unquote

installed = json.loads(Path(sys.argv[1]).read_text())["install"]
print(*sorted(unquote(item["download_info"]["url"]).rsplit("/", 1)[1] for item in installed), sep="\n")
PYTHON
(cd "$folder" && echo "$target" && xargs -d '\n' sha256sum <"$scratch/names") >"$partial/SHA256SUMS"
mv "$partial/SHA256SUMS" "$folder/SHA256SUMS"
size="$(cd "$folder" && xargs -d '\n' du -cm <"$scratch/names" | tail -n 1 | cut -f1)"
echo "$folder: $(wc -l <"$scratch/names") wheels, $size MB; install with BERT_PLD_WHEELHOUSE=$folder"
