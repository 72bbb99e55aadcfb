#!/usr/bin/env bash
# Builds the one static binary for a board: images/build-binary.sh aarch64|x86_64 [build|check]
# With rustup's target where it is installed, else with Debian's packages alone; C code and the linker are
# Debian's either way. The same source and toolchain give the same bytes, wherever they lie.
# Prints the binary's path; `check` only compiles.
set -euo pipefail
cd "$(dirname "$0")/.."

# What is aimed at; a larger binary is said so, and works.
size_aim_bytes=$((16 << 20))

case "${1:-}" in
  x86_64 | amd64 | x86_64-unknown-linux-gnu) target=x86_64-unknown-linux-gnu triple=x86_64-linux-gnu ;;
  aarch64 | arm64 | aarch64-unknown-linux-gnu) target=aarch64-unknown-linux-gnu triple=aarch64-linux-gnu ;;
  armv7* | armhf)
    echo "$0: not built for 32-bit ARM: libcontainer 0.7.0 does not compile there (see README.md)" >&2
    exit 2 ;;
  *) echo "usage: $0 aarch64|x86_64 [build|check]" >&2; exit 2 ;;
esac
mode=${2:-build}

need=()
if [ "$triple" = aarch64-linux-gnu ]; then
  command -v aarch64-linux-gnu-gcc >/dev/null || need+=(gcc-aarch64-linux-gnu)
  [ -e /usr/aarch64-linux-gnu/lib/libc.a ] || need+=(libc6-dev-arm64-cross)
fi
# Build scripts and proc-macros run on this machine.
command -v x86_64-linux-gnu-gcc >/dev/null || need+=(gcc)
[ -e /usr/lib/x86_64-linux-gnu/libc.a ] || need+=(libc6-dev)
if [ "${#need[@]}" -gt 0 ]; then
  [ "$(id -u)" = 0 ] && sudo= || sudo=sudo
  $sudo apt-get -qq update
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${need[@]}" >/dev/null
fi

cargo=cargo
if command -v rustup >/dev/null && rustup target list --installed 2>/dev/null | grep -qx "$target"; then
  RUSTC=$(rustup which rustc)
else
  toolchain=$(images/toolchain.sh target/toolchain)
  RUSTC=$toolchain/rustc
  command -v cargo >/dev/null || cargo=$toolchain/cargo
fi
export RUSTC
echo "compiler: $("$RUSTC" --version)" >&2

# Paths of this machine must not reach the binary: neither Rust's nor C's.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
maps=("$PWD=/edgelet" "$cargo_home=/cargo")
rust_flags=(-C target-feature=+crt-static -C relocation-model=static)
# On x86-64 a frame pointer costs less code than every push costs unwind tables. C code never unwinds.
[ "$target" != x86_64-unknown-linux-gnu ] || rust_flags+=(-C force-frame-pointers=yes)
c_flags="-fno-asynchronous-unwind-tables -fno-unwind-tables"
for map in "${maps[@]}"; do
  rust_flags+=("--remap-path-prefix=$map")
  c_flags="$c_flags -ffile-prefix-map=$map"
done
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; echo "${rust_flags[*]}")
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export CARGO_ENCODED_RUSTFLAGS SOURCE_DATE_EPOCH CARGO_INCREMENTAL=0 LC_ALL=C TZ=UTC
upper=$(tr 'a-z-' 'A-Z_' <<<"$target")
lower=${target//-/_}
export "CARGO_TARGET_${upper}_LINKER=$triple-gcc" "CC_$lower=$triple-gcc" "AR_$lower=$triple-ar" "CFLAGS_$lower=$c_flags"

# A folder of its own: two compilers in one folder would undo each other's work.
case "$mode" in
  check) exec "$cargo" check --locked --target "$target" --target-dir target/cross ;;
  build) "$cargo" build --locked --release --bin edgelet --target "$target" --target-dir target/cross >&2 ;;
  *) echo "usage: $0 aarch64|x86_64 [build|check]" >&2; exit 2 ;;
esac

binary=target/cross/$target/release/edgelet
if "$triple-readelf" -l "$binary" | grep -q INTERP; then
  echo "$binary asks for a dynamic loader: it is not static" >&2
  exit 1
fi
if "$triple-readelf" -S "$binary" | grep -q '\.symtab'; then
  echo "$binary is not stripped" >&2
  exit 1
fi
if grep -qaF -e "$PWD" -e "$cargo_home" "$binary"; then
  echo "$binary holds paths of this machine: it cannot be reproduced elsewhere" >&2
  exit 1
fi
bytes=$(stat -c %s "$binary")
echo "size: $bytes bytes ($((bytes * 10 / 1048576 / 10)).$((bytes * 10 / 1048576 % 10)) MiB), sha256 $(sha256sum <"$binary" | cut -d' ' -f1)" >&2
[ "$bytes" -le "$size_aim_bytes" ] || echo "NOTE: larger than the $size_aim_bytes bytes aimed at (README.md, limits)" >&2
echo "$binary"
