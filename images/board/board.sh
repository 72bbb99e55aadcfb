# What the board's scripts share: the owner's settings and what follows from them.
SETTINGS=/boot/edgelet.yaml
CERTIFICATE=/var/lib/edgelet/node/node.crt

# The value of one `key: value` line, without quotes and Windows' line ends.
setting() {
  sed -n "s/^$1:[[:space:]]*//p" "$SETTINGS" 2>/dev/null | tr -d '\r' | sed 's/[[:space:]]*$//; s/^"\(.*\)"$/\1/; s/^'"'"'\(.*\)'"'"'$/\1/' | head -n 1
}

# The owner's, else one that follows from the serial number, so that two boards differ.
board_name() {
  name=$(setting hostname)
  if [ -z "$name" ]; then
    serial=$(cat /proc/device-tree/serial-number 2>/dev/null | tr -d '\0')
    [ -n "$serial" ] || serial=$(cat /sys/class/net/*/address 2>/dev/null | grep -v '^00:00:00:00:00:00$' | sort | head -n 1 | tr -d :)
    name=edgelet-$(echo "${serial:-0}" | tail -c 9)
  fi
  echo "$name" | tr 'A-Z_' 'a-z-' | tr -cd 'a-z0-9.-'
}

is_node() { [ -n "$(setting server)" ]; }

# edgelet's own config file, in memory: it may hold the token.
write_config() {
  umask 077
  {
    echo "node-name: $(board_name)"
    if is_node; then
      echo "server: \"$(setting server)\""
      [ -z "$(setting token)" ] || echo "token: \"$(setting token)\""
    fi
    labels=$(setting labels)
    [ -z "$labels" ] || { echo "node-label:"; echo "$labels" | tr ',' '\n' | sed 's/^ *\(.*\)$/- "\1"/'; }
  } >/etc/edgelet/config.yaml
  umask 022
}

# What there is now, and through mdev what comes later: a Pi 3's own port hangs on its USB.
start_network() {
  for path in /sys/class/net/*; do start_interface "${path##*/}"; done
  mkdir -p /run/openntpd /var/lib/openntpd/db
  echo "servers $(setting ntp | grep . || echo pool.ntp.org)" >/run/ntpd.conf
  # -s: a board without a battery is far off at first. It waits for answers; nothing here does.
  ntpd -s -f /run/ntpd.conf >/dev/null 2>&1 &
}

# Cable and Wi-Fi; not the pods' links.
start_interface() {
  case "$1" in eth* | en* | usb* | wlan*) ;; *) return 0 ;; esac
  mkdir -p /run/network
  mkdir "/run/network/$1" 2>/dev/null || return 0
  ip link set "$1" up
  if [ -e "/sys/class/net/$1/wireless" ] || [ -e "/sys/class/net/$1/phy80211" ]; then
    ssid=$(setting wifi-ssid)
    [ -n "$ssid" ] || return 0
    start_wifi "$1"
  fi
  if [ -z "$(setting address)" ]; then
    udhcpc -b -S -i "$1" -x "hostname:$(board_name)" -s /etc/udhcpc.script >/dev/null 2>&1 &
  elif mkdir /run/network/address 2>/dev/null; then
    ip addr add "$(setting address)" dev "$1"
    [ -z "$(setting gateway)" ] || ip route add default via "$(setting gateway)" dev "$1"
    setting dns | tr ', ' '\n\n' | sed -n 's/^\(..*\)$/nameserver \1/p' >/etc/resolv.conf
  fi
}

start_wifi() {
  umask 077
  {
    echo "country=$(setting wifi-country | grep . || echo GB)"
    printf 'network={\n  ssid="%s"\n' "$ssid"
    if [ -n "$(setting wifi-password)" ]; then printf '  psk="%s"\n' "$(setting wifi-password)"; else echo "  key_mgmt=NONE"; fi
    echo "}"
  } >/run/wpa_supplicant.conf
  umask 022
  wpa_supplicant -B -i "$1" -c /run/wpa_supplicant.conf >/dev/null
}

# Once a day: what a power cut takes of the time is less than certificates mind.
keep_clock() {
  while sleep 86400; do save_clock; done
}

save_clock() {
  date +%s >/data/clock.new && mv /data/clock.new /data/clock
}

# Whoever reads this card later finds no token that is good for anything.
wipe_token() {
  is_node && grep -q '^token:' "$SETTINGS" || return 0
  until [ -e "$CERTIFICATE" ]; do sleep 2; done
  mount -o remount,rw /boot && sed -i '/^token:/d' "$SETTINGS" && sync && mount -o remount,ro /boot
  sed -i '/^token:/d' /etc/edgelet/config.yaml
}
