#!/usr/bin/env bash
# Checks that the project compiles for aarch64: with rustup's target where it is installed, else with
# Debian's toolchain. `images/check-aarch64.sh build` links a release binary instead.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
if ! command -v aarch64-linux-gnu-gcc >/dev/null; then
  [ "$(id -u)" = 0 ] && sudo= || sudo=sudo
  $sudo apt-get -qq update
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross >/dev/null
fi
if ! rustup target list --installed 2>/dev/null | grep -qx "$target"; then
  RUSTC=$(images/toolchain.sh target/toolchain-aarch64)
  export RUSTC
fi
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
# A folder of its own: two compilers in one folder would undo each other's work.
case "${1:-check}" in
  check) cargo check --target "$target" --target-dir target/cross ;;
  build) cargo build --release --target "$target" --target-dir target/cross ;;
  *) echo "usage: $0 [check|build]" >&2; exit 2 ;;
esac
