#!/usr/bin/env bash
# Builds a small container image for arm64 and amd64 at once, by edgelet itself:
#   images/build-container.sh busybox|web EDGELET [ARM64-EDGELET AMD64-EDGELET]
#   busybox  Debian's busybox-static with a link for each of its programs
#   web      the demo's web server: edgelet's own binary of each architecture, the last two arguments
# EDGELET is the program that builds. The same packages and binaries give the same bytes. Prints the archive's
# path: an OCI layout with one index for both, for `edgelet image import` on any board, or docker and podman.
set -euo pipefail
cd "$(dirname "$0")/.."
usage() { sed -n '2,5s/^# *//p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
name=$1 edgelet=$(realpath "$2") arm64=${3:-} amd64=${4:-}
export LC_ALL=C TZ=UTC
umask 022
command -v jq >/dev/null || { echo "$0: needs jq: apt-get install jq" >&2; exit 1; }

here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
tag=localhost/edgelet/$name:v1
out=target/containers
mkdir -p "$out"

# One package of another architecture, with no trace on this machine.
package() { # architecture, name
  mkdir -p "$here/apt-$1"/{lists/partial,cache/archives/partial} "$here/deb-$1"
  mirror=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
  printf 'Types: deb\nURIs: %s\nSuites: trixie\nComponents: main\nArchitectures: %s\nSigned-By: %s\n' \
    "${mirror:-http://deb.debian.org/debian}" "$1" /usr/share/keyrings/debian-archive-keyring.gpg >"$here/apt-$1/one.sources"
  : >"$here/apt-$1/status"
  local apt=(-o "Dir::State=$here/apt-$1" -o "Dir::State::lists=$here/apt-$1/lists" -o "Dir::State::status=$here/apt-$1/status"
    -o "Dir::Cache=$here/apt-$1/cache" -o "Dir::Etc::sourcelist=$here/apt-$1/one.sources" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::Etc::preferencesparts=/dev/null -o Acquire::Languages=none -o "APT::Architecture=$1" -o "APT::Architectures=$1"
    -o APT::Sandbox::User=root)
  apt-get "${apt[@]}" -qq update
  (cd "$here/deb-$1" && apt-get "${apt[@]}" -qq download "$2" && dpkg-deb -x ./*.deb .)
}

tree() { # architecture
  mkdir -p "$here/$1"
  if [ "$name" = busybox ]; then
    # The image's packages hold it already for the boards.
    local have=target/image/packages/usr/bin/busybox
    mkdir -p "$here/$1"/{bin,etc,tmp,root}
    if [ "$1" = arm64 ] && [ -e "$have" ]; then cp "$have" "$here/$1/bin/busybox"; else
      package "$1" busybox-static
      cp "$(find "$here/deb-$1" -name busybox -type f -perm -100 | head -n 1)" "$here/$1/bin/busybox"
    fi
    chmod 1777 "$here/$1/tmp"
    while read -r link; do ln -s busybox "$here/$1/bin/$link"; done <images/containers/busybox
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$here/$1/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$here/$1/etc/group"
  else
    mkdir -p "$here/$1/bin"
    case "$1" in arm64) cp "$arm64" "$here/$1/bin/edgelet" ;; amd64) cp "$amd64" "$here/$1/bin/edgelet" ;; esac
  fi
}

case "$name" in
  busybox) process=(-- sh) ;;
  web) [ -n "$amd64" ] || usage; process=(--entrypoint /bin/edgelet -- web) ;;
  *) usage ;;
esac

# Each architecture by itself, then one index over both.
mkdir -p "$here/layout/blobs/sha256"
manifests=
for architecture in amd64 arm64; do
  tree "$architecture"
  store=$here/store-$architecture
  "$edgelet" image build --data-dir "$store" --platform "linux/$architecture" "$here/$architecture" --tag "$tag" "${process[@]}" >/dev/null
  "$edgelet" image export --data-dir "$store" "$here/$architecture.tar" "$tag"
  mkdir "$here/one"
  tar -xf "$here/$architecture.tar" -C "$here/one"
  cp -n "$here/one/blobs/sha256"/* "$here/layout/blobs/sha256/"
  manifests="$manifests$(jq -c --arg architecture "$architecture" \
    '.manifests[0] | del(.annotations) | .platform = {architecture: $architecture, os: "linux"}' "$here/one/index.json")"
  rm -rf "$here/one"
done
jq -cSs '{schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: .}' <<<"$manifests" >"$here/index"
digest=$(sha256sum <"$here/index" | cut -d' ' -f1)
jq -cSn --arg digest "sha256:$digest" --argjson size "$(stat -c %s "$here/index")" --arg tag "$tag" \
  '{schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: [{mediaType:
    "application/vnd.oci.image.index.v1+json", digest: $digest, size: $size, annotations:
    {"io.containerd.image.name": $tag, "org.opencontainers.image.ref.name": $tag}}]}' >"$here/layout/index.json"
mv "$here/index" "$here/layout/blobs/sha256/$digest"
echo '{"imageLayoutVersion":"1.0.0"}' >"$here/layout/oci-layout"
tar -cf "$out/$name.tar" -C "$here/layout" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 --mode=u=rwX,go=rX .
echo "size: $(stat -c %s "$out/$name.tar") bytes, sha256 $(sha256sum <"$out/$name.tar" | cut -d' ' -f1)" >&2
echo "$out/$name.tar"
