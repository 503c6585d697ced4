#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 200
#
# The power of hosts of a cluster of three is cut while it is made, and while a guest
# writes and flushes, and snapshots, clones and disks come and go. Of a host that holds
# copies, of the one that serves the disk, of all but that: nothing acknowledged is lost.
# Of more: what was flushed is there, the disk is what it was at one moment. All gets
# whole by itself.
# By hand: ROUNDS=N, SEED=N; POWER_LIES=1 for disks that sync nothing: it must fail.

. "$(dirname "$0")/lib.sh"
requires_power

seed=${SEED:-$RANDOM}
echo "SEED=$seed"
for i in 1 2 3; do
    power_on "$T/$i"
done

# --- what was answered while it is made survives ---
lib_stores=("$T/1")
parallax cluster init "$T/1" --listen "$(node_address 1)" --capacity 1G >/dev/null
power_cycle "$T/1"
start_hosts "$T/1"
for i in 2 3; do
    parallax -c "$T/1" cluster token | parallax cluster join "$T/$i" "$(node_address 1)" \
        --token - --listen "$(node_address "$i")" --capacity 1G >/dev/null
    lib_stores+=("$T/$i")
    power_cycle "${lib_stores[@]}"
    start_hosts "${lib_stores[@]}"
done

T=$T /usr/bin/python3 "$TESTS/power_cuts.py" "${ROUNDS:-1}" "$seed" 1 2 3 ||
    fail "repeat with SEED=$seed (timing differs)"
