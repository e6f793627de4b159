# Sourced by the other scripts: makes (once) and enters the virtual environment.
#
#   source scripts/environment.sh EXTRAS      e.g. "all" or "all,test"
#
# BERT_PLD_VENV   where the environment lives (default: .venv in the checkout); one that is there is re-used
# PYTHON          the interpreter it is made with (default: python3; 3.10 to 3.12)
# BERT_PLD_WHEELHOUSE   a folder of scripts/make_wheelhouse.sh: everything is installed from it, no index is asked

environment_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
environment_dir="${BERT_PLD_VENV:-$environment_root/.venv}"
environment_extras="${1:?extras to install}"
environment_key="$(cat "$environment_root/setup.py" "$environment_root/scripts/constraints.txt" | cksum | tr -d ' ')"
environment_stamp="$environment_dir/.bert_pld-${environment_extras//,/-}-$environment_key"

if [ ! -f "$environment_stamp" ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || {
        echo "error: ${PYTHON:-python3}: Python 3.10 to 3.12 is needed (set PYTHON)" >&2
        return 1 2>/dev/null || exit 1
    }
    environment_from=()
    if [ -n "${BERT_PLD_WHEELHOUSE:-}" ]; then
        # Neither an index nor a folder that pip's configuration names: what the folder lacks is to show.
        environment_from=(--no-index --find-links "$BERT_PLD_WHEELHOUSE")
        (cd "$BERT_PLD_WHEELHOUSE" && grep -v '^#' SHA256SUMS | sha256sum --check --quiet) >&2 || {
            echo "error: BERT_PLD_WHEELHOUSE=$BERT_PLD_WHEELHOUSE: the files are not those of its SHA256SUMS" \
                "(see above); make the folder again with scripts/make_wheelhouse.sh" >&2
            return 1 2>/dev/null || exit 1
        }
    fi
    echo "installing into $environment_dir${BERT_PLD_WHEELHOUSE:+ from $BERT_PLD_WHEELHOUSE}"
    if ! [ -x "$environment_dir/bin/python" ]; then
        "${PYTHON:-python3}" -m venv "$environment_dir"
    elif [ -f "$environment_dir/pyvenv.cfg" ] && ! "$environment_dir/bin/python" -m pip --version >/dev/null 2>&1; then
        # Killed while it was made: what is there of pip would pass for the whole of it. Nothing else is removed.
        rm -rf "$environment_dir"/lib/python3*/site-packages/{pip,setuptools}{,-*} \
            "$environment_dir"/lib/python3*/site-packages/{pkg_resources,_distutils_hack}
        "${PYTHON:-python3}" -m venv "$environment_dir"
    fi
    environment_pip() {
        (
            [ ${#environment_from[@]} -eq 0 ] || { unset PIP_FIND_LINKS && export PIP_CONFIG_FILE=/dev/null; }
            # Bytecode is made of what is imported, when it is: compiling all of it takes a minute.
            "$environment_dir/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
                "${environment_from[@]}" -c "$environment_root/scripts/constraints.txt" "$@"
        )
    }
    # torch comes first: DeepSpeed's build looks for it.
    environment_pip torch numpy setuptools &&
        DS_BUILD_OPS=0 environment_pip -e "$environment_root[$environment_extras]" || {
        echo "error: installing into $environment_dir failed (see above)" >&2
        return 1 2>/dev/null || exit 1
    }
    touch "$environment_stamp"
fi
export PATH="$environment_dir/bin:$PATH"
