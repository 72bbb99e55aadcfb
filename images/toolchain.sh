#!/usr/bin/env bash
# toolchain.sh FOLDER: a Rust toolchain for x86-64 and aarch64 from Debian's packages, for machines that
# have none or can add no rustup target. Unpacked into FOLDER, nothing of it installed; FOLDER/rustc and
# FOLDER/cargo run it. Prints FOLDER.
set -euo pipefail
folder=$(realpath -m "${1:?folder}")
[ ! -x "$folder/cargo" ] || { echo "$folder"; exit 0; }
mkdir -p "$folder"/{lists/partial,cache/archives/partial,debs,sys}
mirror=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
# All of it from one suite: a compiler and a standard library of different builds do not fit together.
cat > "$folder/rust.sources" <<SOURCES
Types: deb
URIs: ${mirror:-http://deb.debian.org/debian}
Suites: trixie
Components: main
Architectures: amd64 arm64
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
: > "$folder/status"
apt=(-o Dir::State="$folder" -o Dir::State::lists="$folder/lists" -o Dir::State::status="$folder/status"
  -o Dir::Cache="$folder/cache" -o Dir::Etc::sourcelist="$folder/rust.sources" -o Dir::Etc::sourceparts=/dev/null
  -o Dir::Etc::preferencesparts=/dev/null -o Acquire::Languages=none -o APT::Architecture=amd64
  -o APT::Architectures=amd64,arm64 -o APT::Sandbox::User=root)
apt-get "${apt[@]}" -qq update
std=$(apt-cache "${apt[@]}" pkgnames libstd-rust-web-1 | grep -E '^libstd-rust-web-[0-9.]+$' | sort -V | tail -n 1)
llvm=$(apt-cache "${apt[@]}" depends "$std" | awk '/Depends: libllvm/{print $2; exit}')
# The libraries cargo is linked against, and theirs; not what the compiler wants besides (a C compiler, clang).
libraries='s/^ *Depends: \(lib[^ <:]*\|zlib1g\)$/\1/p'
only=(--no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances)
direct=$(apt-cache "${apt[@]}" depends "${only[@]}" cargo-web | sed -n "$libraries")
# shellcheck disable=SC2086
cargo_needs=$(apt-cache "${apt[@]}" depends --recurse "${only[@]}" $direct | sed -n "$libraries" | sort -u)
(
  cd "$folder/debs"
  # shellcheck disable=SC2086
  apt-get "${apt[@]}" -qq download rustc-web cargo-web "$std" libstd-rust-web-dev libstd-rust-web-dev:arm64 "$llvm" \
    libc6 libgcc-s1 zlib1g libzstd1 libxml2 libedit2 libffi8 libtinfo6 libstdc++6 libz3-4 libicu76 liblzma5 libbsd0 libmd0 \
    $direct $cargo_needs
)
for deb in "$folder"/debs/*.deb; do dpkg-deb -x "$deb" "$folder/sys"; done
rm -rf "$folder/debs" "$folder/cache"
# Their own loader and libraries: trixie's programs need a newer libc than the machine may have.
for program in rustc cargo; do
  cat > "$folder/$program" <<WRAPPER
#!/bin/sh
sys=$folder/sys
exec "\$sys/usr/lib64/ld-linux-x86-64.so.2" --library-path "\$sys/usr/lib/x86_64-linux-gnu:\$sys/lib/x86_64-linux-gnu" "\$sys/usr/bin/$program" "\$@"
WRAPPER
  chmod +x "$folder/$program"
done
echo "$folder"
