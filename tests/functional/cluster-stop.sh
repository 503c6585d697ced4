#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# builds: release asan
#
# All hosts of a cluster are told to stop, at once or one after the other: the last has
# nobody left to agree with, and ends all the same. What was written is there afterwards.

. "$(dirname "$0")/lib.sh"
requires nbdcopy
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

start_cluster 3 --capacity 1G
wait_for 60 is_whole
for i in 1 2 3; do
    parallax disk create "disk$i" 64M
    head -c 8M /dev/urandom >"$T/data$i"
    nbdcopy "$T/data$i" "$(uri "disk$i" "$T/$i")"
done

# Tells hosts to stop, together, and waits until they have.
stop()
{
    local i pid pids=()
    for i in "$@"; do
        pids+=("$(daemon_pid "$T/$i")")
    done
    kill -TERM "${pids[@]}"
    for pid in "${pids[@]}"; do
        wait_for 20 is_gone "$pid"
    done
}

compare()
{
    local i
    for i in 1 2 3; do
        nbdcopy "$(uri "disk$i" "$T/$((i % 3 + 1))")" "$T/back"
        cmp -n $((8 << 20)) "$T/data$i" "$T/back" || fail "disk$i is another one"
    done
    wait_for 60 is_whole
}

stop 1 2 3
start_hosts "$T/1" "$T/2" "$T/3"
compare

# The last one has a client that has just written.
head -c 4096 /dev/urandom >"$T/block"
/usr/bin/python3 - "$(uri disk3 "$T/3")" "$T/block" "$T/held" <<'END' &
import nbd, sys, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(open(sys.argv[2], "rb").read(), 0)
open(sys.argv[3], "w").close()
time.sleep(60)
END
holder=$!
wait_for 30 test -e "$T/held"
stop 1 2
stop 3
kill "$holder"
wait "$holder" || true
dd if="$T/block" of="$T/data3" bs=4k conv=notrunc status=none
start_hosts "$T/1" "$T/2" "$T/3"
compare
