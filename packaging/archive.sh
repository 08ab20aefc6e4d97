#!/usr/bin/env bash
# Packs a finished program for a release: archive.sh PROGRAM NAME [FOLDER] makes FOLDER/NAME.tar.gz and its .sha256
set -euo pipefail
[[ $# -ge 2 ]] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
repository=$(cd "$(dirname "$0")/.." && pwd)
program=$(realpath "$1") name=$2 folder=$(cd "${3:-.}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/$name/completions"
cp "$program" "$repository"/{README.md,CHANGELOG.md,LICENSE-MIT,LICENSE-APACHE} "$work/$name/"
cp -r "$repository/docs" "$work/$name/"
for shell in bash zsh fish powershell; do
    "$program" completions "$shell" >"$work/$name/completions/quantize.$shell"
done
"$program" man --dir "$work/$name/man"
tar -C "$work" -czf "$folder/$name.tar.gz" "$name"
cd "$folder"
if command -v sha256sum >/dev/null; then sha256sum "$name.tar.gz"; else shasum -a 256 "$name.tar.gz"; fi >"$name.tar.gz.sha256"
