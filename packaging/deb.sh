#!/usr/bin/env bash
# Makes a Debian package of a finished program: deb.sh PROGRAM [FOLDER]
# Its completions and manual pages are those that the program itself prints. Needs dpkg-deb; no root.
set -euo pipefail
[[ $# -ge 1 ]] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
repository=$(cd "$(dirname "$0")/.." && pwd)
program=$(realpath "$1")
folder=$(realpath "${2:-.}")
version=$("$program" --version | cut -d' ' -f2)
case $(od -An -tx1 -j18 -N1 "$program" | tr -d ' ') in
    3e) architecture=amd64 ;;
    b7) architecture=arm64 ;;
    *) echo "deb.sh: $program is not for x86-64 or 64-bit ARM" >&2; exit 1 ;;
esac
# The C library that it was linked with; none where it is linked statically.
libc=$({ grep -ao 'GLIBC_2\.[0-9]*' "$program" || true; } | sort -uV | tail -1 | cut -d_ -f2)
maintainer=${MAINTAINER:-quantize maintainers <maintainers@users.noreply.github.com>}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

bash "$repository/packaging/tree.sh" "$program" "$root/usr"
mkdir -p "$root/usr/share/doc/quantize" "$root/DEBIAN"
cp "$repository/README.md" "$root/usr/share/doc/quantize/"
gzip -9nc "$repository/CHANGELOG.md" >"$root/usr/share/doc/quantize/CHANGELOG.md.gz"
printf 'quantize (%s) unstable; urgency=low\n\n  * CHANGELOG.md.gz says what is new.\n\n -- %s  %s\n' \
    "$version" "$maintainer" "$(date -uR -d "@${SOURCE_DATE_EPOCH:-$(date +%s)}")" |
    gzip -9n >"$root/usr/share/doc/quantize/changelog.gz"
{
    cat "$repository/LICENSE-MIT"
    echo
    echo "At your option, instead of the above: the Apache License, version 2.0, which is in"
    echo "/usr/share/common-licenses/Apache-2.0."
} >"$root/usr/share/doc/quantize/copyright"
find "$root/usr" -type d -exec chmod 755 {} +
cat >"$root/DEBIAN/control" <<END
Package: quantize
Version: $version
Architecture: $architecture
Maintainer: $maintainer
Installed-Size: $(du -sk "$root/usr" | cut -f1)
Section: science
Priority: optional${libc:+
Depends: libc6 (>= $libc), libgcc-s1}
Description: quantizes language models and measures what was lost
 It reads safetensors and GGUF, writes GGUF files and GPTQ, AWQ, FP8, NVFP4,
 bitsandbytes and MLX checkpoints, runs what it made, and says how far it is
 from the original.
END
dpkg-deb --root-owner-group --build "$root" "$folder/quantize_${version}_$architecture.deb"
