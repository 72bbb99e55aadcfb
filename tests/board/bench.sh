# What the boards' test stands on, for `source`: a network of its own in a namespace, a server in it, and emulated
# aarch64 boards with 512 MB on it. Wants $here, a folder of its own; whoever sources it calls take_down at the end.
namespace=edgelet-board-$$
cgroup=edgelet-board-$$
server_address=192.0.2.1
server_process=
declare -A machines began
steps_began=$(date +%s%N)

# Not `ip netns exec`, which hides the cgroups behind another /sys.
enter=(nsenter "--net=/run/netns/$namespace" --)
# In the background only "${enter[@]}" itself: of a function the shell knows a shell's process, not the program's.
inside() { "${enter[@]}" "$@"; }
since() { # nanoseconds; as seconds with a tenth
  local tenths=$((($(date +%s%N) - $1) / 100000000))
  echo "$((tenths / 10)).$((tenths % 10))"
}
say() { printf '%8s s  %s\n' "$(since "$steps_began")" "$*"; }
fail() {
  local board
  echo "FAIL: $*" >&2
  for board in "${!machines[@]}"; do
    echo "--- $board's console, its end" >&2
    tail -n "${FAIL_LINES:-60}" "$here/$board.console" >&2 || true
  done
  echo "--- the server's log, its end" >&2
  tail -n 20 "$here/server.log" >&2 || true
  [ -z "${KEEP:-}" ] || cp -r "$here" "$KEEP"
  exit 1
}
# The limits are for machines that have other things to do besides.
until_true() { # seconds, what, command...
  local limit_s=$1 what=$2 start board
  shift 2
  start=$(date +%s)
  until "$@" >/dev/null 2>&1; do
    for board in "${!machines[@]}"; do
      kill -0 "${machines[$board]}" 2>/dev/null || fail "$board's machine has ended: $(cat "$here/$board.qemu")"
    done
    [ $(($(date +%s) - start)) -lt "$limit_s" ] || fail "not within $limit_s s: $what"
    sleep 0.3
  done
}

set_up() { # boards
  ip netns add "$namespace"
  inside ip link set lo up
  inside ip link add lan0 type bridge
  inside ip addr add "$server_address/24" dev lan0
  inside ip link set lan0 up
  : >"$here/leases"
  printf '%s\n' "start 192.0.2.100" "end 192.0.2.120" "interface lan0" "lease_file $here/leases" "pidfile $here/dhcp.pid" \
    "option subnet 255.255.255.0" "option router $server_address" "option lease 3600" >"$here/dhcp.conf"
  local number=0
  for board in "$@"; do
    number=$((number + 1))
    inside ip tuntap add "tap-$board" mode tap
    inside ip link set "tap-$board" master lan0 up
    echo "static_lease $(hardware_address "$board") 192.0.2.$((10 + number))" >>"$here/dhcp.conf"
  done
  "${enter[@]}" busybox udhcpd -f "$here/dhcp.conf" >/dev/null 2>&1 &
  dhcp=$!
  ssh-keygen -q -t ed25519 -N '' -C test -f "$here/key"
}

# By the board's name. QEMU's USB network makes every address begin with 40.
hardware_address() { echo "40:ed:$(md5sum <<<"$1" | sed 's/\(..\)\(..\)\(..\)\(..\).*/\1:\2:\3:\4/')"; }
address_of() { sed -n "s/^static_lease $(hardware_address "$1") //p" "$here/dhcp.conf"; }

start_server() {
  "${enter[@]}" "$server_binary" server --data-dir "$here/server" --run-dir "$here/run" --log-dir "$here/pods" \
    --node-name server --node-ip "$server_address" --cgroup-root "$cgroup" --bridge edge0 >>"$here/server.log" 2>&1 &
  server_process=$!
  until_true 120 "the server answers" server_answers
}
server_answers() { [ "$(inside curl -sk --max-time 5 "https://$server_address:6443/readyz")" = ok ]; }
kill_server() {
  kill -9 "$server_process"
  wait "$server_process" 2>/dev/null || true
  server_process=
}
# The cluster's admin, in the server's namespace.
edgelet() { KUBECONFIG=$here/server/kubeconfig inside "$server_binary" "$@"; }

# A card with the image on it, and edgelet.yaml as its owner has edited it.
make_card() { # board, lines of edgelet.yaml
  cp --sparse=always "$image" "$here/$1.card"
  truncate -s 1G "$here/$1.card"
  { printf 'hostname: %s\n' "$1"; printf '%s\n' "$2"; echo "ssh-key: $(cat "$here/key.pub")"; } >"$here/edgelet.yaml"
  MTOOLS_SKIP_CHECK=1 mcopy -o -i "$here/$1.card@@4M" "$here/edgelet.yaml" ::edgelet.yaml
}
power_on() { # board
  : >"$here/$1.console"
  # No battery: the clock stands in the past. writethrough: what the board was told is written is written.
  "${enter[@]}" qemu-system-aarch64 "${machine_options[@]}" -display none -monitor none -rtc base=2001-01-01T00:00:00 \
    -kernel "$fat/kernel8.img" -initrd "$fat/initrd.gz" "${serial_options[@]/CONSOLE/$here/$1.console}" \
    -drive "file=$here/$1.card,format=raw,if=$drive_kind,id=card,cache=writethrough" "${card_options[@]}" \
    -netdev "tap,id=net,ifname=tap-$1,script=no,downscript=no" -device "$network_device,netdev=net,mac=$(hardware_address "$1")" \
    </dev/null 2>"$here/$1.qemu" &
  machines[$1]=$!
  began[$1]=$(date +%s%N)
}
cut_power() { # board
  kill -9 "${machines[$1]}"
  wait "${machines[$1]}" 2>/dev/null || true
  unset "machines[$1]"
}
# Seconds since this board's power came on.
up() { since "${began[$1]}"; }
on() { # board, command...
  local board=$1
  shift
  inside ssh -q -i "$here/key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=20 \
    -o ServerAliveInterval=20 -o BatchMode=yes "root@$(address_of "$board")" "$@"
}
console_says() { grep -qa -e "$2" "$here/$1.console"; }

take_down() {
  set +e
  for board in "${!machines[@]}"; do kill -9 "${machines[$board]}" 2>/dev/null || true; done
  [ -z "$server_process" ] || kill -9 "$server_process" 2>/dev/null || true
  [ -z "${dhcp:-}" ] || kill "$dhcp" 2>/dev/null || true
  wait 2>/dev/null || true
  # Pods outlive their server: this one's live in a cgroup of their own.
  for round in 1 2 3; do
    find /sys/fs/cgroup -type d -path "*/$cgroup*" 2>/dev/null | while read -r folder; do
      for process in $(cat "$folder/cgroup.procs" 2>/dev/null); do kill -9 "$process" 2>/dev/null; done
    done
    sleep 0.5
    find /sys/fs/cgroup -depth -type d -path "*/$cgroup*" -exec rmdir {} \; 2>/dev/null
  done
  for process in $(ip netns pids "$namespace" 2>/dev/null); do kill -9 "$process" 2>/dev/null || true; done
  grep -o " $here/[^ ]*" /proc/mounts | sort -r | while read -r mount; do umount -l "$mount" 2>/dev/null || true; done
  ip netns del "$namespace" 2>/dev/null || true
  rm -rf --one-file-system "$here"
}
