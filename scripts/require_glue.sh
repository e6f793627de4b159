# To be sourced: ends the script with one line if the folder GLUE lacks a file, before hours of pretraining.
# GLUE may be unset, hub, or hub=NAME.
case "${GLUE:-hub}" in
hub | hub=*) ;;
*)
    for task in CoLA SST-2 RTE; do
        for file in train.tsv dev.tsv; do
            if ! [ -f "$GLUE/$task/$file" ]; then
                echo "error: GLUE: $GLUE/$task/$file not found; must be the folder of the official download, or hub" >&2
                exit 1
            fi
        done
    done
    ;;
esac
