#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 120
# builds: release asan
#
# The daemon is ended in the middle of writes, in order or by kill -9, and started again:
# every acknowledged write is there, and no other but those in flight.

. "$(dirname "$0")/lib.sh"
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

# Writes until the daemon ends, by SIGNAL after SECONDS.
write_until()
{
    /usr/bin/python3 "$TESTS/restart.py" "$PARALLAX" write "$T/state" &
    local writer=$!
    for ((i = 0; i < 300; i++)); do
        [ ! -e "$T/state.ready" ] || break
        sleep 0.1
    done
    rm "$T/state.ready" || fail "the writer does not begin"
    sleep "$2"
    is_running $writer || fail "the writer ended early"
    end_daemon "$1" "$PARALLAX"
    wait $writer
}

start_up "$T/store" --capacity 4G
parallax disk create one 64M
parallax disk create two 256K

for round in "KILL 1" "KILL 0.3" "TERM 0.7" "KILL 0.9" "KILL 0.1" "TERM 0.2" "KILL 1.5"
do
    # shellcheck disable=SC2086
    write_until $round
    start_up "$T/store"
    /usr/bin/python3 "$TESTS/restart.py" "$PARALLAX" verify "$T/state"
done

# In order, and by the command.
parallax down
! parallax status >"$T/out" 2>&1 || fail "the daemon still answers after 'down'"
start_up "$T/store"
/usr/bin/python3 "$TESTS/restart.py" "$PARALLAX" verify "$T/state"
parallax check
