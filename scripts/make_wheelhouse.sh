#!/usr/bin/env bash
# Every wheel that an installation without a network needs, in one folder, with the SHA-256 of each (docs/clusters.md).
#
#   bash scripts/make_wheelhouse.sh [--python 3.11] [--platform manylinux_2_28_x86_64] [--torch_index URL]
#       [--extras all,test] FOLDER
#
# --python       Python of the machines without a network (default: that of PYTHON, or python3); it must be here too
# --platform     manylinux_2_N_MACHINE: wheels that run with glibc 2.N and newer (default: 2.28); MACHINE is this one's
# --torch_index  where torch comes from, e.g. https://download.pytorch.org/whl/cpu (default: pip's index, CUDA's build)
# --extras       extras of setup.py (default: all)
#
# Run again, it fetches what is missing. The checkout itself is not in the folder: it is installed with `pip install -e`.
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
    -*) fail "$1: must be of --python, --platform, --torch_index, --extras" ;;
    *)
        [ -z "$folder" ] || fail "$1: one FOLDER is enough ($folder)"
        folder="$1"
        shift
        ;;
    esac
done
[ -n "$folder" ] || fail "FOLDER is missing: bash scripts/make_wheelhouse.sh [OPTIONS] FOLDER"
case "${python:-3.12}" in 3.10 | 3.11 | 3.12) ;; *) fail "--python $python: must be 3.10, 3.11 or 3.12" ;; esac
interpreter="${python:+python$python}"
interpreter="${interpreter:-${PYTHON:-python3}}"
# pip evaluates `; python_version >= …` by the interpreter that it runs in, whatever --python-version says.
version="$("$interpreter" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" ||
    fail "--python ${python:-(default)}: $interpreter does not run here; what is needed differs with Python's version"
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

given = {}  # setup.py is run with a stand-in: Python 3.12's environments have no setuptools
sys.modules["setuptools"] = types.ModuleType("setuptools")
sys.modules["setuptools"].find_packages = lambda **_: []
sys.modules["setuptools"].setup = lambda **arguments: given.update(arguments)
runpy.run_path("setup.py")
wanted = list(given["install_requires"])
for extra in filter(None, sys.argv[1].split(",")):
    if extra not in given["extras_require"]:
        raise SystemExit(f"error: --extras {extra}: must be of {', '.join(given['extras_require'])}")
    wanted += given["extras_require"][extra]
# What an empty virtual environment needs besides to install a checkout with `pip install -e`.
print(*wanted, "pip", "setuptools", "wheel", sep="\n")
PYTHON
)" || exit 1
mkdir -p "$(cd "$invoked_from" && realpath -m "$folder")" 2>/dev/null || fail "$folder: cannot be made"
folder="$(cd "$invoked_from" && realpath "$folder")"
[ -w "$folder" ] || fail "$folder: cannot be written to"

# What the folder is for. A list that is complete begins with it.
sources="$(cat setup.py scripts/constraints.txt | cksum | tr -d ' ')"
target="# python $version, $platform, extras $extras, torch of ${torch_index:-the index}, pins $sources"
if [ -f "$folder/SHA256SUMS" ] && [ "$(head -n 1 "$folder/SHA256SUMS")" = "$target" ] &&
    (cd "$folder" && grep -v '^#' SHA256SUMS | sha256sum --check --quiet) >/dev/null 2>&1; then
    echo "$folder: complete already, every SHA-256 as listed"
    exit 0
fi
if [ -f "$folder/SHA256SUMS" ]; then # damaged files go, and the list until it is complete again
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

# 1. What is published as source only. Without its compiled operations DeepSpeed is one wheel for every Python.
deepspeed="$(grep -E '^deepspeed==' scripts/constraints.txt | cut -d' ' -f1 || true)"
if [ -n "$deepspeed" ] && ! compgen -G "$folder/${deepspeed/==/-}-py3-none-any.whl" >/dev/null; then
    echo "building $deepspeed"
    DS_BUILD_OPS=0 pip wheel --no-deps --wheel-dir "$partial" "$deepspeed" || fail "$deepspeed cannot be built: $(why)"
    mv "$partial"/deepspeed-*-py3-none-any.whl "$folder" || fail "$deepspeed became no wheel for every Python"
fi

# 2. Which wheels: pip resolves for the target without installing.
tags=()
for ((minor = glibc; minor >= 5; minor--)); do tags+=(--platform "manylinux_2_${minor}_$machine"); done
for name in manylinux2014 manylinux2010 manylinux1 linux; do tags+=(--platform "${name}_$machine"); done
from=(--only-binary=:all: --python-version "$version" --implementation cp "${tags[@]}" --find-links "$folder")
# That index's build of torch is chosen by its local version: pip puts 2.13.0+cpu before 2.13.0.
[ -z "$torch_index" ] || from+=(--extra-index-url "$torch_index")
echo "resolving for Python $version, $platform"
pip install --dry-run --ignore-installed --target "$scratch/target" --report "$scratch/report.json" "${from[@]}" \
    -c scripts/constraints.txt -r "$scratch/requirements.txt" ||
    fail "no set of wheels: $(why); a package that is published as compiled source only can be built on such a machine" \
        "alone: pip wheel --no-deps NAME there, the wheel into $folder, then this again"

# 3. Fetch what is missing, a few files at a time: an interruption loses no more.
"$scratch/venv/bin/python" - "$folder" "$scratch" <<'PYTHON'
import hashlib, json, sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

folder, scratch = map(Path, sys.argv[1:])
names, missing = [], []
for item in json.loads((scratch / "report.json").read_text())["install"]:
    url = item["download_info"]["url"]
    names.append(unquote(urlsplit(url).path.rsplit("/", 1)[1]))
    path = folder / names[-1]
    expected = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
    if path.is_file():
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
        if expected in (None, digest.hexdigest()):
            continue
        path.unlink()
    missing.append(url + (f"#sha256={expected}" if expected else ""))
(scratch / "names").write_text("".join(name + "\n" for name in sorted(names)))
(scratch / "missing").write_text("".join(url + "\n" for url in missing))
print(f"{len(names)} wheels, {len(missing)} to fetch")
PYTHON
while mapfile -t -n 8 -u 3 urls && [ ${#urls[@]} -gt 0 ]; do
    pip download --no-deps --dest "$partial" "${from[@]}" "${urls[@]}" || fail "cannot be fetched: $(why); run again"
    mv "$partial"/*.whl "$folder"
done 3<"$scratch/missing"

# 4. The list, written last.
(cd "$folder" && echo "$target" && xargs -d '\n' sha256sum <"$scratch/names") >"$partial/SHA256SUMS"
mv "$partial/SHA256SUMS" "$folder/SHA256SUMS"
size="$(cd "$folder" && xargs -d '\n' du -cm <"$scratch/names" | tail -n 1 | cut -f1)"
echo "$folder: $(wc -l <"$scratch/names") wheels, $size MB; install with BERT_PLD_WHEELHOUSE=$folder"
