#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 120
#
# The power of a host is cut again and again while a guest writes and flushes, and
# snapshots, clones and disks come and go: the disk is what it was at one moment since the
# last flush, the rest is as it was answered. In a folder, and on a device. First, what
# loses unsynced writes is tested.
# By hand: ROUNDS=N, SEED=N; POWER_LIES=1 for disks that sync nothing: it must fail.

. "$(dirname "$0")/lib.sh"
requires_power

seed=${SEED:-$RANDOM}
echo "SEED=$seed"
cleanup_fn /usr/bin/python3 "$TESTS/power.py" off "$T/self"
/usr/bin/python3 "$TESTS/power_self.py" "$T/self" || fail "the disks are none"

cuts()
{
    T=$T /usr/bin/python3 "$TESTS/power_cuts.py" "$1" "$seed" "$2" ||
        fail "repeat with SEED=$seed (timing differs)"
}
power_on "$T/1"
start_up "$T/1" --capacity 256M
cuts "${ROUNDS:-2}" 1

# --- the store on the device itself; the rest lies where nothing is lost ---
name=power-$$
folder=/var/lib/parallax/$name
[ ! -e "$folder" ] || fail "$folder is in use"
cleanup_fn rm -rf "$folder"
power_on "$T/$name" device
parallax up "$T/$name" --detach --capacity 256M
cuts "${ROUNDS:-1}" "$name"
