#!/usr/bin/env bash
# toolchain.sh FOLDER: a Rust toolchain for x86-64 and aarch64 from Debian's packages, for machines
# that can add no rustup target. Unpacked into FOLDER, nothing of it installed. Prints FOLDER/rustc.
set -euo pipefail
folder=$(realpath -m "${1:?folder}")
[ ! -x "$folder/rustc" ] || { echo "$folder/rustc"; exit 0; }
mkdir -p "$folder"/{lists/partial,cache/archives/partial,debs,sys}
mirror=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources)
# All of it from one suite: a compiler and a standard library of different builds do not fit together.
cat > "$folder/rust.sources" <<SOURCES
Types: deb
URIs: $mirror
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
(
  cd "$folder/debs"
  apt-get "${apt[@]}" -qq download rustc-web "$std" libstd-rust-web-dev libstd-rust-web-dev:arm64 "$llvm" \
    libc6 libgcc-s1 zlib1g libzstd1 libxml2 libedit2 libffi8 libtinfo6 libstdc++6 libz3-4 libicu76 liblzma5 libbsd0 libmd0
)
for deb in "$folder"/debs/*.deb; do dpkg-deb -x "$deb" "$folder/sys"; done
rm -rf "$folder/debs" "$folder/cache"
cat > "$folder/rustc" <<WRAPPER
#!/bin/sh
sys=$folder/sys
exec "\$sys/usr/lib64/ld-linux-x86-64.so.2" --library-path "\$sys/usr/lib/x86_64-linux-gnu:\$sys/lib/x86_64-linux-gnu" "\$sys/usr/bin/rustc" "\$@"
WRAPPER
chmod +x "$folder/rustc"
echo "$folder/rustc"
