#!/usr/bin/env bash
# Lays a finished program out as packages install it: tree.sh PROGRAM PREFIX
# PREFIX/bin, completions for bash, zsh and fish, and a manual page for every command. PROGRAM must run on this machine.
set -euo pipefail
[[ $# -eq 2 ]] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
program=$(realpath "$1") prefix=$2
share=$prefix/share
mkdir -p "$prefix/bin" "$share/bash-completion/completions" "$share/zsh/vendor-completions" "$share/fish/vendor_completions.d"
install -m 755 "$program" "$prefix/bin/"
"$program" completions bash >"$share/bash-completion/completions/quantize"
"$program" completions zsh >"$share/zsh/vendor-completions/_quantize"
"$program" completions fish >"$share/fish/vendor_completions.d/quantize.fish"
"$program" man --dir "$share/man/man1"
gzip -9n "$share"/man/man1/*.1
