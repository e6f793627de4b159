# To be sourced by reproduce.sh and reproduce_recipe.sh, from the repository's root: what both do before they train.

# Ends the script with one line, before hours of work, for a wrong number of seeds, or if the folder GLUE lacks a file.
# GLUE may be unset, hub, or hub=NAME.
check_comparison() { # SEEDS
    local task file
    case "$1" in
    *[!0-9]* | 0)
        echo "error: SEEDS: '$1'; must be a number of at least 1" >&2
        exit 1
        ;;
    esac
    case "${GLUE:-hub}" in
    hub | hub=*) return ;;
    esac
    for task in CoLA SST-2 RTE; do
        for file in train.tsv dev.tsv; do
            if ! [ -f "$GLUE/$task/$file" ]; then
                echo "error: GLUE: $GLUE/$task/$file not found; must be the folder of the official download, or hub" >&2
                exit 1
            fi
        done
    done
}

# Builds the shards from WIKIPEDIA and BOOKS, which are by default read from the Hugging Face Hub.
build_comparison_corpus() { # OUTPUT_DIR VOCAB_SIZE SEQ_LENGTH…
    python -m data_prep build --source "${WIKIPEDIA:-hub=wikimedia/wikipedia:20231101.en}" \
        --source "${BOOKS:-hub=bookcorpus/bookcorpus:plain_text,revision=refs/convert/parquet,join_rows=64}" \
        --vocab_size "$2" --seq_length "${@:3}" --output_dir "$1"
}
