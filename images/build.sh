#!/usr/bin/env bash
# Builds a flashable image: images/build.sh rpi|virt [--binary FILE] [--settings FILE] [--url URL] [--pages 16k] [--no-compress]
#   rpi   SD card for Raspberry Pi 3, Zero 2 W and 4; Debian's kernel has no driver for the card of a Pi 5
#   virt  the same without the firmware, for an emulated aarch64 board (QEMU's -M virt)
# From Debian's packages alone, none of them run or installed: no loop mounts, no emulation, no root. The same
# packages, binary and date give the same bytes. Prints the image's path.
#   --url  the folder on the network where it will lie, for os_list.json, which Raspberry Pi Imager takes as --repo
#   --pages 16k  Debian's kernel with pages of 16 KB, as a Pi 5's own system has them; for virt
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { sed -n '2,8s/^# *//p' "$0" >&2; exit 2; }
board=${1:-}
case "$board" in rpi | virt) shift ;; *) usage ;; esac
binary= settings=images/board/edgelet.yaml url= compress=1 flavour=arm64
while [ $# -gt 0 ]; do
  case "$1" in
    --binary) binary=$2; shift 2 ;;
    --settings) settings=$2; shift 2 ;;
    --url) url=${2%/}/; shift 2 ;;
    --pages) [ "$board $2" = "virt 16k" ] || usage; flavour=arm64-16k; shift 2 ;;
    --no-compress) compress=; shift ;;
    *) usage ;;
  esac
done
[ -n "$binary" ] || binary=$(images/build-binary.sh aarch64)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC MTOOLS_SKIP_CHECK=1
umask 022
PATH=$PATH:/usr/sbin:/sbin

need=()
command -v mkfs.vfat >/dev/null || need+=(dosfstools)
command -v mcopy >/dev/null || need+=(mtools)
command -v mksquashfs >/dev/null || need+=(squashfs-tools)
command -v depmod >/dev/null || need+=(kmod)
command -v cpio >/dev/null || need+=(cpio)
command -v xz >/dev/null || need+=(xz-utils)
if [ "${#need[@]}" -gt 0 ]; then
  [ "$(id -u)" = 0 ] && sudo= || sudo=sudo
  $sudo apt-get -qq update
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${need[@]}" >/dev/null
fi

# Debian's packages for the board, unpacked beside.
work=$PWD/target/image
packages=$work/packages${flavour#arm64}
wanted=$(sha256sum <images/board/packages)
if [ "$(cat "$packages/complete" 2>/dev/null)" != "$wanted" ]; then
  rm -rf "$packages" "$work/apt"
  mkdir -p "$work"/apt/{lists/partial,cache/archives/partial,debs} "$packages"
  mirror=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
  cat >"$work/apt/board.sources" <<SOURCES
Types: deb
URIs: ${mirror:-http://deb.debian.org/debian}
Suites: trixie
Components: main non-free-firmware
Architectures: arm64
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
  : >"$work/apt/status"
  apt=(-o Dir::State="$work/apt" -o Dir::State::lists="$work/apt/lists" -o Dir::State::status="$work/apt/status"
    -o Dir::Cache="$work/apt/cache" -o Dir::Etc::sourcelist="$work/apt/board.sources" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::Etc::preferencesparts=/dev/null -o Acquire::Languages=none -o APT::Architecture=arm64
    -o APT::Architectures=arm64 -o APT::Sandbox::User=root)
  apt-get "${apt[@]}" -qq update
  kernel=$(apt-cache "${apt[@]}" depends "linux-image-$flavour" | sed -n 's/.*Depends: \(linux-image-[0-9]\)/\1/p' | head -n 1)
  mapfile -t names < <(tr ' ' '\n' <images/board/packages)
  (cd "$work/apt/debs" && apt-get "${apt[@]}" -qq download "$kernel" "${names[@]}")
  for deb in "$work"/apt/debs/*.deb; do dpkg-deb -x "$deb" "$packages"; done
  for folder in "$packages"/usr/lib/modules/*; do depmod -b "$packages/usr" "$(basename "$folder")"; done
  (cd "$work/apt/debs" && sha256sum ./*.deb) >"$packages.sha256"
  echo "$wanted" >"$packages/complete"
  rm -rf "$work/apt"
fi
version=$(basename "$(echo "$packages"/usr/lib/modules/*)")

rm -rf "$work/root" "$work/ird" "$work/fat"
root=$work/root
mkdir -p "$root"/{boot,data,dev,etc/edgelet,etc/init.d,proc,root,run,sys,tmp,var/lib/edgelet,var/log/pods,usr/lib/modules}
for folder in bin sbin lib; do mkdir -p "$root/usr/$folder" && ln -s "usr/$folder" "$root/$folder"; done

# The kernel's modules that boards and pods need, with those they depend on; unpacked, because the root is
# compressed as a whole.
from=$packages/usr/lib/modules/$version
modules=$root/usr/lib/modules/$version
mkdir -p "$modules"
awk -F: 'NR == FNR { wanted[$1]; next }
  { for (part in wanted) if (index($1, part "/") == 1 || index($1, part ".") == 1 || index($1, part) == 1 && part ~ /\.ko$/) { print $1 $2; next } }' \
  images/board/modules "$from/modules.dep" | tr ' ' '\n' | sort -u | sed '/^$/d' >"$work/modules"
(cd "$from" && cp --parents -t "$modules" modules.order modules.builtin modules.builtin.modinfo $(cat "$work/modules"))
find "$modules" -name '*.ko.xz' -print0 | xargs -0 -n 200 unxz
depmod -b "$root/usr" "$version"

# Programs and the libraries they are linked against.
cp -a "$packages/usr/bin/busybox" "$root/usr/bin/busybox" 2>/dev/null || cp -a "$packages/bin/busybox" "$root/usr/bin/busybox"
mkdir -p "$root/usr/lib/aarch64-linux-gnu"
cp -a "$packages"/usr/lib/aarch64-linux-gnu/*.so* "$root/usr/lib/aarch64-linux-gnu/"
cp -a "$packages"/usr/lib/ld-linux-aarch64.so.1 "$root/usr/lib/" 2>/dev/null || cp -a "$packages"/lib/ld-linux-aarch64.so.1 "$root/usr/lib/"
for program in mke2fs e2fsck resize2fs wpa_supplicant wpa_cli dropbear ntpd; do
  found=$(find "$packages"/usr/sbin "$packages"/sbin -maxdepth 1 -name "$program" -print -quit 2>/dev/null || true)
  [ -n "$found" ] && cp -aL "$found" "$root/usr/sbin/$program" || { echo "$program is in no package" >&2; exit 1; }
done
cp -aL "$packages/usr/bin/dropbearkey" "$root/usr/bin/"
mkdir -p "$root/usr/lib/firmware"
cp -a "$packages"/usr/lib/firmware/regulatory.db* "$root/usr/lib/firmware/" 2>/dev/null || true
[ "$board" = virt ] || cp -a "$packages/usr/lib/firmware/brcm" "$packages/usr/lib/firmware/cypress" "$root/usr/lib/firmware/" 2>/dev/null || true
for name in sh ash mount umount sed awk tr grep head tail cat date sort xargs find ip udhcpc watchdog syslogd klogd \
  logger logread mdev modprobe insmod lsmod depmod mkswap swapon hostname mkdir chmod ls ps kill killall pidof sleep sync \
  cp mv rm ln df du free top vi ping nslookup wget stat id env which; do
  [ -e "$root/usr/bin/$name" ] || ln -s busybox "$root/usr/bin/$name"
done
for name in init reboot poweroff halt modprobe mdev; do ln -sf ../bin/busybox "$root/usr/sbin/$name"; done
install -m 755 "$binary" "$root/usr/bin/edgelet"
install -m 755 images/board/edgelet-run "$root/usr/sbin/edgelet-run"
install -m 755 images/board/{rcS,rcK} "$root/etc/init.d/"
install -m 644 images/board/inittab "$root/etc/inittab"
install -m 644 images/board/board.sh "$root/etc/edgelet/board.sh"
install -m 755 images/board/udhcpc.script "$root/etc/udhcpc.script"
install -m 755 images/board/network "$root/etc/network.sh"
install -m 644 images/board/mdev.conf "$root/etc/mdev.conf"
# Whom pulls over HTTPS trust; put together as the package's own script does.
mkdir -p "$root/etc/ssl/certs"
find "$packages/usr/share/ca-certificates/mozilla" -name '*.crt' | sort | xargs cat >"$root/etc/ssl/certs/ca-certificates.crt"
echo "$SOURCE_DATE_EPOCH" >"$root/etc/edgelet/image-epoch"
# Nobody has a password; root comes in by the key on the card alone.
printf 'root:*:0:0:root:/root:/bin/sh\nopenntpd:*:100:100::/run/openntpd:/bin/false\n' >"$root/etc/passwd"
echo 'root:*:20000:0:99999:7:::' >"$root/etc/shadow"
chmod 600 "$root/etc/shadow"
printf 'root:x:0:\ntty:x:5:\ndialout:x:20:\nopenntpd:x:100:\n' >"$root/etc/group"
echo /bin/sh >"$root/etc/shells"
printf 'NAME=edgelet\nID=edgelet\nPRETTY_NAME="edgelet image %s (Debian trixie packages)"\n' \
  "$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)" >"$root/etc/os-release"
: >"$root/etc/resolv.conf"

rm -f "$work/root.squashfs"
mksquashfs "$root" "$work/root.squashfs" -noappend -all-root -quiet -no-progress -comp zstd -Xcompression-level 15 \
  -b 128K -processors 2 >/dev/null

# What finds the card: busybox, the file system tools and the modules up to the root.
ird=$work/ird
mkdir -p "$ird"/{bin,sbin,etc,lib,usr/lib,usr/sbin}
cp "$root/usr/bin/busybox" "$ird/bin/busybox"
install -m 755 images/board/init "$ird/init"
install -m 644 images/board/boot-modules "$ird/etc/boot-modules"
cp "$root"/usr/sbin/{mke2fs,e2fsck} "$ird/sbin/"
mkdir -p "$ird/lib/aarch64-linux-gnu"
cp -L "$root/usr/lib/ld-linux-aarch64.so.1" "$ird/lib/"
for library in libc.so.6 libext2fs.so.2 libe2p.so.2 libcom_err.so.2 libblkid.so.1 libuuid.so.1 libpthread.so.0; do
  [ ! -e "$root/usr/lib/aarch64-linux-gnu/$library" ] || cp -L "$root/usr/lib/aarch64-linux-gnu/$library" "$ird/lib/aarch64-linux-gnu/"
done
mkdir -p "$ird/lib/modules/$version"
cp "$modules"/modules.{order,builtin,builtin.modinfo} "$ird/lib/modules/$version/"
while read -r name; do
  modprobe -d "$root/usr" -S "$version" --show-depends "$name" 2>/dev/null | sed -n 's/^insmod \([^ ]*\).*/\1/p' || true
done <images/board/boot-modules | sort -u | while read -r file; do
  part=${file#*"/lib/modules/$version/"}
  mkdir -p "$ird/lib/modules/$version/$(dirname "$part")"
  cp "$modules/$part" "$ird/lib/modules/$version/$part"
done
depmod -b "$ird" "$version"
find "$ird" -exec touch --no-dereference -d "@$SOURCE_DATE_EPOCH" {} +
(cd "$ird" && find . -print0 | sort -z | cpio --null --create --quiet --format=newc --owner=0:0 --reproducible) |
  gzip -9n >"$work/initrd.gz"

# What the firmware reads.
fat=$work/fat
mkdir -p "$fat/overlays"
gzip -9n <"$packages/boot/vmlinuz-$version" >"$fat/kernel8.img"
cp "$work/initrd.gz" "$fat/initrd.gz"
cp "$settings" "$fat/edgelet.yaml"
# Later words win: the firmware puts cgroup_disable=memory in front.
echo "console=tty1 console=ttyS1,115200 quiet panic=10 printk.devkmsg=on cgroup_enable=memory cgroup_memory=1" >"$fat/cmdline.txt"
if [ "$board" = rpi ]; then
  # With gpu_mem=16 the firmware takes the cut-down ones; the plain ones are for who changes that.
  for name in bootcode.bin {start,fixup}{,_cd,4,4cd}; do
    case "$name" in *.bin) ;; start*) name=$name.elf ;; *) name=$name.dat ;; esac
    cp "$packages/usr/lib/raspi-firmware/$name" "$fat/"
  done
  cp "$packages/usr/lib/linux-image-$version/broadcom"/bcm2{711,837}-rpi-*.dtb "$fat/"
  printf '%s\n' arm_64bit=1 kernel=kernel8.img "initramfs initrd.gz followkernel" enable_uart=1 upstream_kernel=1 \
    gpu_mem=16 disable_splash=1 >"$fat/config.txt"
fi
find "$fat" -exec touch --no-dereference -d "@$SOURCE_DATE_EPOCH" {} +

megabyte=$((1 << 20))
fat_megabytes=$((($(du -sm --apparent-size "$fat" | cut -f1) + 16 + 3) / 4 * 4))
[ "$fat_megabytes" -ge 64 ] || fat_megabytes=64
root_bytes=$(stat -c %s "$work/root.squashfs")
root_megabytes=$(((root_bytes + 4 * megabyte - 1) / (4 * megabyte) * 4))
rm -f "$work/fat.img"
truncate -s "${fat_megabytes}M" "$work/fat.img"
mkfs.vfat --invariant -F 32 -n EDGELET -i ED6E1E70 "$work/fat.img" >/dev/null
(cd "$fat" && find . -mindepth 1 -maxdepth 1 | sort | while read -r one; do mcopy -s -m -i "$work/fat.img" "$one" ::; done)

# A fresh file: dd over an older one would leave its blocks where this one has holes.
name=edgelet-$board${flavour#arm64}
image=$work/$name.img
rm -f "$image" "$image.xz"
truncate -s $(((4 + fat_megabytes + root_megabytes) * megabyte)) "$image"
entry() { # boot flag, type, first sector, sectors
  printf "\\x$1\\xfe\\xff\\xff\\x$2\\xfe\\xff\\xff"
  for number in "$3" "$4"; do
    printf "\\x$(printf %02x $((number & 255)))\\x$(printf %02x $((number >> 8 & 255)))\\x$(printf %02x $((number >> 16 & 255)))\\x$(printf %02x $((number >> 24 & 255)))"
  done
}
{
  printf 'EDGL\0\0'
  entry 80 0c 8192 $((fat_megabytes * 2048))
  entry 00 83 $((8192 + fat_megabytes * 2048)) $((root_megabytes * 2048))
  head -c 32 /dev/zero
  printf '\x55\xaa'
} | dd of="$image" bs=1 seek=440 conv=notrunc status=none
dd if="$work/fat.img" of="$image" bs=1M seek=4 conv=notrunc,sparse status=none
dd if="$work/root.squashfs" of="$image" bs=1M seek=$((4 + fat_megabytes)) conv=notrunc status=none
echo "image: $(stat -c %s "$image") bytes, sha256 $(sha256sum <"$image" | cut -d' ' -f1)" >&2
if [ -n "$compress" ]; then
  xz --threads=1 --keep --force -6 "$image"
  limit_bytes=$((80 * megabyte))
  bytes=$(stat -c %s "$image.xz")
  (cd "$work" && sha256sum "$name.img" "$name.img.xz") >"$work/SHA256SUMS"
  cat >"$work/os_list.json" <<JSON
{"os_list": [{"name": "edgelet", "description": "Kubernetes for small boards: edit edgelet.yaml on the card, then boot",
"url": "${url}$name.img.xz", "extract_size": $(stat -c %s "$image"), "extract_sha256": "$(sha256sum <"$image" | cut -d' ' -f1)",
"image_download_size": $bytes, "image_download_sha256": "$(sha256sum <"$image.xz" | cut -d' ' -f1)",
"release_date": "$(date -u -d "@$SOURCE_DATE_EPOCH" +%F)", "devices": ["pi3-64bit", "pi4-64bit"], "init_format": "none"}]}
JSON
  echo "compressed: $bytes bytes" >&2
  [ "$bytes" -le "$limit_bytes" ] || { echo "$image.xz is larger than $limit_bytes bytes" >&2; exit 1; }
fi
echo "$image"
