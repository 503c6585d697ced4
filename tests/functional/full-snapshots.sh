#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 240
# builds: release
#
# A store is filled to the last block by a disk and its snapshots, and these are removed
# while clients go on trying to write: each removal works, also through a crash, nothing
# that stays is lost, and the space comes back, to guests at once and in the end all of
# it. So it is with a disk that is removed.

. "$(dirname "$0")/lib.sh"
requires jq
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

work()
{
    /usr/bin/python3 "$TESTS/full-snapshots.py" "$PARALLAX" "$T/state" "$@"
}

live()
{
    parallax status --json | jq -e .live_bytes
}

live_is_below()
{
    [ "$(live)" -lt "$1" ]
}

names()
{
    parallax snapshot ls d --json | jq -r '[.[].name] | join(" ")'
}

restart()
{
    kill9_daemon "$PARALLAX"
    start_up "$T/store"
}

start_up "$T/store" --capacity 192M
parallax disk create d 8M
parallax disk create other 300M
work fill # snapshots until there is no space
work verify
[ "$(work count)" -gt 10 ] || fail "$(work count) snapshots fill 192M"

# --- one after the other, each time until it is full again ---
for round in 1 2 3; do
    echo "round $round"
    work remove-one
    work fill-other
    work verify
done
parallax check

# --- killed behind the answer: what is removed stays away ---
work remove-one
before=$(names)
restart
[ "$(names)" = "$before" ] || fail "after a kill: $(names), not $before"
work fill-other
work verify

# --- several at once, while a client writes all the time ---
work remove-while-writing
work verify
restart
work verify
parallax check

# --- a disk ---
parallax disk rm other >"$T/out"
parallax trash empty
work verify
work remove-rest
wait_for 60 live_is_below $((9 << 20))
work verify
parallax check

# --- as much fits as at first ---
parallax disk create other 300M
work fill-again
parallax disk rm other >"$T/out"
parallax disk rm d >"$T/out"
parallax trash empty
wait_for 60 live_is_below 1
parallax check
