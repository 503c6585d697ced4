#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 120
# builds: release
#
# Snapshots by the clock: made while the daemon runs, the newest few of each rule kept,
# those made by hand left alone; rules survive a restart.

. "$(dirname "$0")/lib.sh"
requires jq
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

names()
{
    parallax snapshot ls d --json | jq -r "[.[].name | select(startswith(\"$1\"))] |
        join(\" \")"
}

count_is()
{
    # shellcheck disable=SC2046
    set -- "$1" "$2" $(names "$1")
    [ $(($# - 2)) -eq "$2" ]
}

# A disk that is not written gets no snapshots.
write()
{
    /usr/bin/python3 - "$(uri d)" "$RANDOM" <<'END'
import sys
import nbd

handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
handle.pwrite(bytes([int(sys.argv[2]) % 256]) * 512, 0)
END
}

written_count_is()
{
    write
    count_is "$@"
}

start_up "$T/store" --capacity 1G
parallax disk create d 64M
parallax snapshot create d@mine
[ "$(parallax snapshot schedule d --json)" = '[]' ] || fail "a schedule nobody made"

expect_error 'needs a --keep N behind it' parallax snapshot schedule d --every 1h
expect_error 'stands behind an --every' parallax snapshot schedule d --keep 2
expect_error 'not a span' parallax snapshot schedule d --every often --keep 2
expect_error 'a number above 0' parallax snapshot schedule d --every 1h --keep 0
expect_error 'either' parallax snapshot schedule d --every 1h --keep 2 --none
expect_error 'nope.*no such' parallax snapshot schedule nope --every 1h --keep 2

parallax snapshot schedule d --every 2s --keep 3 --every 1d --keep 7
[ "$(parallax snapshot schedule d --json | jq -c '[.[] | [.every_seconds, .keep]]')" = \
    '[[2,3],[86400,7]]' ] || fail "$(parallax snapshot schedule d --json)"
parallax snapshot schedule d | grep -Eq '^1d +7$' ||
    fail "$(parallax snapshot schedule d)"
wait_for 30 count_is auto-2s- 1
wait_for 30 count_is auto-1d- 1
sleep 5
count_is auto-2s- 1 || fail "of a disk that was not written: $(names auto-2s-)"
wait_for 30 written_count_is auto-2s- 3
first=$(names auto-2s-)
[[ $first =~ ^auto-2s-20[0-9]{6}-[0-9]{6}\  ]] || fail "names: $first"
is_new()
{
    write
    [ "$(names auto-2s-)" != "$1" ]
}
wait_for 20 is_new "$first"
sleep 1
count_is auto-2s- 3 || fail "not 3 are kept: $(names auto-2s-)"
count_is auto-1d- 1 || fail "more than one a day: $(names auto-1d-)"
[ "$(names mine)" = mine ] || fail "a snapshot made by hand has gone"

# Rules stay; what was due while nobody ran is made once.
stop_daemon "$PARALLAX"
sleep 5
start_up "$T/store"
old=$(names auto-2s-)
wait_for 20 is_new "$old"
sleep 1
count_is auto-2s- 3 || fail "after a restart: $(names auto-2s-)"

parallax snapshot schedule d --none
[ "$(parallax snapshot schedule d --json)" = '[]' ] || fail "--none"
sleep 1
old=$(names auto-)
sleep 4
[ "$(names auto-)" = "$old" ] || fail "snapshots without a schedule"
parallax check
