# Shared by the comparisons beside it, which read it with `.` when `folder` is set: the program to
# measure with, and one measurement.
#
# CLUSTERLB names a program that has been built; else it is built here, and reports the commit.

if [ -z "${CLUSTERLB:-}" ]; then
    CLUSTERLB_COMMIT=$(git describe --always --dirty=+changes --abbrev=12 --exclude='*' \
        2>/dev/null || echo unknown)
    export CLUSTERLB_COMMIT
    cargo build --release --bin clusterlb
    unset CLUSTERLB_COMMIT
    CLUSTERLB=${CARGO_TARGET_DIR:-target}/release/clusterlb
fi
mkdir -p "$folder"

# NAME and the words for the program. The words in front of it are in `under`. A measurement of which
# too few trials count for something ends with 4, which is a result; what this machine cannot do is
# left out.
measure() {
    name=$1
    shift
    code=0
    # shellcheck disable=SC2086 # what is in front is words
    ${under:-} "$CLUSTERLB" "$@" --report "$folder/$name.html" --csv "$folder/$name.csv" \
        >"$folder/$name.txt" || code=$?
    case $code in
    0) ;;
    3) echo "$name: $(cat "$folder/$name.txt") left out" >&2 ;;
    4) echo "$name: too few trials count; $folder/$name.txt says of what and why" >&2 ;;
    *) exit "$code" ;;
    esac
    cat "$folder/$name.txt"
}
