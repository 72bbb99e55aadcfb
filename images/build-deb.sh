#!/usr/bin/env bash
# Builds the Debian package: images/build-deb.sh arm64|amd64 [BINARY]
# Without BINARY, images/build-binary.sh makes it first. Needs no root; the same binary and date give the same
# bytes. Prints the package's path.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
  arm64 | aarch64) arch=arm64 target=aarch64 ;;
  amd64 | x86_64) arch=amd64 target=x86_64 ;;
  *) echo "usage: $0 arm64|amd64 [BINARY]" >&2; exit 2 ;;
esac
binary=${2:-$(images/build-binary.sh "$target")}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
# One thread: how many there are would show in the compressed bytes.
export SOURCE_DATE_EPOCH DPKG_DEB_THREADS_MAX=1 LC_ALL=C TZ=UTC
umask 022

tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
install -D -m 755 "$binary" "$tree/usr/bin/edgelet"
for unit in edgelet.service edgelet-node.service; do
  mkdir -p "$tree/usr/lib/systemd/system"
  sed 's#/usr/local/bin/edgelet#/usr/bin/edgelet#' "systemd/$unit" >"$tree/usr/lib/systemd/system/$unit"
done
mkdir -p "$tree/etc/edgelet" "$tree/DEBIAN" "$tree/usr/share/doc/edgelet"
cat >"$tree/etc/edgelet/config.yaml" <<'CONFIG'
# Keys are the long flags of `edgelet server --help`, for example:
# node-name: kitchen
CONFIG
# It may come to hold a token.
chmod 600 "$tree/etc/edgelet/config.yaml"
gzip -9n <CHANGELOG.md >"$tree/usr/share/doc/edgelet/changelog.gz"
{
  echo "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/"
  echo "Upstream-Name: edgelet"
  echo "Source: https://github.com/edgelet/edgelet"
  echo
  echo "Files: *"
  echo "Copyright: the authors of edgelet"
  echo "License: Apache-2.0"
  echo " On Debian systems the text is in /usr/share/common-licenses/Apache-2.0."
} >"$tree/usr/share/doc/edgelet/copyright"

cat >"$tree/DEBIAN/control" <<CONTROL
Package: edgelet
Version: $version
Architecture: $arch
Maintainer: edgelet <edgelet@users.noreply.github.com>
Installed-Size: $(du -sk --apparent-size --exclude=DEBIAN "$tree" | cut -f1)
Section: admin
Priority: optional
Homepage: https://github.com/edgelet/edgelet
Recommends: kmod
Description: Kubernetes for fleets of small ARM boards
 API server, store, scheduler, controllers, node agent, container runtime,
 service proxy and DNS server in one process and one static binary. An
 unmodified kubectl works against it.
CONTROL
echo /etc/edgelet/config.yaml >"$tree/DEBIAN/conffiles"

# A new version takes over the pods that run. A first installation starts nothing: the owner says what the
# board is to be.
cat >"$tree/DEBIAN/postinst" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = configure ]; then
  if [ -d /run/systemd/system ]; then
    systemctl --quiet daemon-reload || true
    if [ -n "$2" ]; then
      for unit in edgelet.service edgelet-node.service; do
        systemctl --quiet try-restart "$unit" || true
      done
    fi
  fi
  if [ -z "$2" ]; then
    echo "edgelet: start a cluster here: systemctl enable --now edgelet"
    echo "edgelet: or join one:          edgelet join https://SERVER:6443 --token ..."
  fi
fi
exit 0
SCRIPT
# Only at the end for good: an upgrade leaves the service and the pods to postinst.
cat >"$tree/DEBIAN/prerm" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = remove ]; then
  if [ -d /run/systemd/system ]; then
    for unit in edgelet.service edgelet-node.service; do
      systemctl --quiet disable --now "$unit" || true
    done
  fi
  edgelet uninstall --yes --keep-data --packaged ||
    echo "edgelet: some pods are left; reboot, then they are gone" >&2
fi
exit 0
SCRIPT
cat >"$tree/DEBIAN/postrm" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = remove ] || [ "$1" = purge ]; then
  if [ -d /run/systemd/system ]; then
    systemctl --quiet daemon-reload || true
  fi
fi
if [ "$1" = purge ]; then
  # `edgelet join` writes one there.
  rm -f /etc/systemd/system/edgelet-node.service
  # Never through a mount; a data partition that is mounted there stays, empty.
  for folder in /run/edgelet /var/lib/edgelet /etc/edgelet; do
    rm -rf --one-file-system "$folder" || true
  done
fi
exit 0
SCRIPT
chmod 755 "$tree"/DEBIAN/{postinst,prerm,postrm}
find "$tree" -exec touch --no-dereference -d "@$SOURCE_DATE_EPOCH" {} +

mkdir -p target/deb
package=target/deb/edgelet_${version}_$arch.deb
dpkg-deb --root-owner-group -Zxz --build "$tree" "$package" >&2
echo "size: $(stat -c %s "$package") bytes, sha256 $(sha256sum <"$package" | cut -d' ' -f1)" >&2
echo "$package"
