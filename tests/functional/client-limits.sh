#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 180
# builds: release asan
#
# Hostile NBD clients: wild lengths, half messages, floods, clients that vanish or never
# read. Meanwhile a good client is served correctly and without long pauses, the daemon's
# memory stays bounded, and afterwards all is as it was.

. "$(dirname "$0")/lib.sh"
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

memory_max_mib=512

peak_mib()
{
    awk '$1 == "VmHWM:" { print int($2 / 1024) }' "/proc/$(daemon_pid "$PARALLAX")/status"
}

start_up "$T/store" --capacity 4G
pid=$(daemon_pid "$PARALLAX")
parallax disk create good 16M
parallax disk create victim 256M

/usr/bin/python3 "$TESTS/client-good.py" "$(uri good)" "$T/stop" &
good=$!
/usr/bin/python3 "$TESTS/client-limits.py" "$PARALLAX/nbd.sock" || fail "see above"
is_running $good || fail "the good client ended"
touch "$T/stop"
wait $good || fail "the good client was served badly"

[ "$(daemon_pid "$PARALLAX")" = "$pid" ] || fail "the daemon is another one"
parallax status >"$T/status" || fail "no status"
parallax check
echo "peak memory: $(peak_mib) MiB"
if [[ $PARALLAX_BUILD != *asan* ]] && [ "$(peak_mib)" -gt "$memory_max_mib" ]; then
    fail "the daemon took $(peak_mib) MiB of memory"
fi
