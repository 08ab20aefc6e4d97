#!/usr/bin/env bash
# Rotating backups with hard links: daily.0 is the newest.
set -euo pipefail

usage() {
    cat <<USAGE
usage: ${0##*/} [-n] [-k KEEP] SOURCE... TARGET
  -n       show what would be done
  -k KEEP  number of snapshots to keep (default 14)
USAGE
}

keep=14
dry=
while getopts ':nk:h' opt; do
    case $opt in
        n) dry=echo ;;
        k) keep=$OPTARG ;;
        h) usage; exit 0 ;;
        :) echo "option -$OPTARG needs a value" >&2; exit 2 ;;
        *) usage >&2; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
(( $# >= 2 )) || { usage >&2; exit 2; }
[[ $keep =~ ^[1-9][0-9]*$ ]] || { echo "KEEP must be a positive number, not '$keep'" >&2; exit 2; }

target=${*: -1}
sources=("${@:1:$#-1}")
mkdir -p -- "$target"

exec 9>"$target/.lock"
if ! flock -n 9; then
    echo "another backup is running" >&2
    exit 75
fi

if [[ -d $target/daily.$((keep - 1)) ]]; then
    $dry rm -rf -- "$target/daily.$((keep - 1))"
fi
for (( i = keep - 2; i >= 0; i-- )); do
    if [[ -d $target/daily.$i ]]; then
        $dry mv -- "$target/daily.$i" "$target/daily.$((i + 1))"
    fi
done

link=()
if [[ -d $target/daily.1 ]]; then
    link=(--link-dest="$(realpath -- "$target/daily.1")")
fi

start=$SECONDS
$dry rsync -a --delete --numeric-ids "${link[@]}" -- "${sources[@]}" "$target/daily.0/"
printf '%(%F %T)T backup of %d source(s) done in %ds\n' -1 "${#sources[@]}" "$((SECONDS - start))"

# Largest directories of the new snapshot, for the mail.
[[ -z $dry ]] && du -xh --max-depth=2 "$target/daily.0" | sort -rh | head -n 10 | awk '{ printf "%8s  %s\n", $1, $2 }'
exit 0
