# Sourced by the other scripts: creates the virtual environment once, and activates it.
#
#   source scripts/environment.sh EXTRAS      e.g. "all" or "all,test"
#
# BERT_PLD_VENV        folder of the environment (default: .venv in the checkout); an existing one is used again
# PYTHON               interpreter of a new environment (default: python3); must be 3.10 to 3.12. An existing
#                      environment keeps its own
# BERT_PLD_WHEELHOUSE  folder of scripts/make_wheelhouse.sh; everything is installed from it, without an index

# zsh has no BASH_SOURCE; there $0 is the file that is sourced.
environment_root="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)"
environment_dir="${BERT_PLD_VENV:-$environment_root/.venv}"
environment_extras="${1:?extras to install}"
environment_key="$(cat "$environment_root/setup.py" "$environment_root/scripts/constraints.txt" | cksum | tr -d ' ')"
environment_stamp="$environment_dir/.bert_pld-${environment_extras//,/-}-$environment_key"

if [ ! -f "$environment_stamp" ]; then
    [ "$(uname -s)" = Linux ] || {
        echo "error: $(uname -s): training and data preparation need Linux" >&2
        return 1 2>/dev/null || exit 1
    }
    environment_python="${PYTHON:-python3}"
    if [ -x "$environment_dir/bin/python" ]; then
        environment_python="$("$environment_dir/bin/python" -c 'import sys; print(sys._base_executable)')"
    fi
    "$environment_python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || {
        echo "error: $environment_python: must be Python 3.10 to 3.12 (set PYTHON)" >&2
        return 1 2>/dev/null || exit 1
    }
    environment_from=()
    if [ -n "${BERT_PLD_WHEELHOUSE:-}" ]; then
        # No index, and no folder of pip's configuration, so that a wheel that the folder lacks is an error.
        environment_from=(--no-index --find-links "$BERT_PLD_WHEELHOUSE")
        (cd "$BERT_PLD_WHEELHOUSE" && grep -v '^#' SHA256SUMS | sha256sum --check --quiet) >&2 || {
            echo "error: BERT_PLD_WHEELHOUSE=$BERT_PLD_WHEELHOUSE: the files do not match SHA256SUMS" \
                "(see above); run scripts/make_wheelhouse.sh again" >&2
            return 1 2>/dev/null || exit 1
        }
    fi
    echo "installing into $environment_dir${BERT_PLD_WHEELHOUSE:+ from $BERT_PLD_WHEELHOUSE}"
    if ! [ -x "$environment_dir/bin/python" ]; then
        "$environment_python" -m venv "$environment_dir"
    elif [ -f "$environment_dir/pyvenv.cfg" ] && ! "$environment_dir/bin/python" -m pip --version >/dev/null 2>&1; then
        # The script was killed while it created the environment. pip would take its incomplete files for an
        # installation, so they are removed; nothing else is.
        rm -rf "$environment_dir"/lib/python3*/site-packages/{pip,setuptools}{,-*} \
            "$environment_dir"/lib/python3*/site-packages/{pkg_resources,_distutils_hack}
        "$environment_python" -m venv "$environment_dir"
    fi
    environment_pip() {
        (
            [ ${#environment_from[@]} -eq 0 ] || { unset PIP_FIND_LINKS && export PIP_CONFIG_FILE=/dev/null; }
            # Python compiles a module when it is imported first; compiling all of them takes a minute.
            "$environment_dir/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
                ${environment_from[@]+"${environment_from[@]}"} -c "$environment_root/scripts/constraints.txt" "$@"
        )
    }
    # torch comes first because DeepSpeed's setup.py imports it.
    environment_pip torch numpy setuptools &&
        DS_BUILD_OPS=0 environment_pip -e "$environment_root[$environment_extras]" || {
        echo "error: installing into $environment_dir failed (see above)" >&2
        return 1 2>/dev/null || exit 1
    }
    touch "$environment_stamp"
fi
export PATH="$environment_dir/bin:$PATH"
