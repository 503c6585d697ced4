#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 600
# The daemon is killed at random moments, 100 times; nothing acknowledged is lost and
# every snapshot is one moment of its disk, and what is removed takes nothing along.
# By hand: ROUNDS=N, SEED=N, and arguments of crash_loop.py; two hours at 85 % full are
# ROUNDS=1000 crash-loop.sh --hours 2 --life 55 --capacity 4G --full 85
. "$(dirname "$0")/lib.sh"

requires parallax /usr/bin/python3
/usr/bin/python3 -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

rounds=100
[ -z "${PARALLAX_QUICK-}" ] || rounds=15
seed=${SEED:-$RANDOM}
echo "SEED=$seed"
cleanup_fn end_daemon KILL "$T/host"
code=0
/usr/bin/python3 "$TESTS/crash_loop.py" "$T/host" "${ROUNDS:-$rounds}" "$seed" "$@" ||
    code=$?
case $code in
0) ;;
3) fail "the store is full; what was acknowledged is there; SEED=$seed" ;;
*) fail "lost something; repeat with SEED=$seed (timing differs)" ;;
esac
