#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 180
# builds: release asan
#
# Scrub reads everything in the background, is paused and goes on, and names what has
# rotted; check finds a store sound, space included.

. "$(dirname "$0")/lib.sh"
requires jq
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

damage()
{
    /usr/bin/python3 "$TESTS/damage.py" "$@"
}

scrub()
{
    parallax scrub status --json | jq -e -r ".$1"
}

scrub_is()
{
    [ "$(scrub state)" = "$1" ]
}

start_up "$T/store" --capacity 1G
[ "$(scrub state)" = never ] || fail "scrub before it was started: $(scrub state)"
parallax disk create web 64M
damage write "$(uri web)"
parallax snapshot create web@first
parallax disk create other 4M
parallax check | grep -q 'all sound' || fail "check"
[ "$(parallax check --json | jq .lost_blocks)" -eq 0 ] || fail "lost blocks"

# --- slowly, paused, on ---
parallax scrub start --rate 1M
wait_for 10 scrub_is running
expect_error "'frob' is not start" parallax scrub frob
expect_error 'not a size' parallax scrub start --rate fast
parallax scrub pause
wait_for 10 scrub_is paused
sleep 1 # what it was just reading is finished
before=$(scrub done_bytes)
sleep 1
[ "$(scrub done_bytes)" = "$before" ] || fail "it goes on while it is paused"
[ "$before" -lt $((32 << 20)) ] || fail "$before bytes at a rate of 1 MiB a second"
parallax scrub start --rate 1G
wait_for 60 scrub_is finished
[ "$(scrub findings)" -eq 0 ] || fail "findings: $(parallax scrub status)"
[ "$(scrub done_bytes)" -ge $((60 << 20)) ] || fail "it read $(scrub done_bytes) bytes"
parallax scrub status | grep -q '^state  *finished$' || fail "scrub status"

# --- rot in data ---
stop_daemon "$PARALLAX"
damage rot "$T/store/store" 100
start_up "$T/store"
parallax scrub
wait_for 60 scrub_is finished || fail "scrub does not end"
[ "$(scrub findings)" -ge 1 ] || fail "scrub finds nothing"
code=0
parallax scrub status >"$T/out" || code=$?
[ "$code" -eq 1 ] || fail "scrub status ended with $code"
grep -q "web.*offset 409600\b" "$T/out" || fail "scrub does not name it: $(cat "$T/out")"
! parallax check >"$T/out" || fail "check finds nothing"
grep -q "web.*offset 409600\b" "$T/out" || fail "check does not name it: $(cat "$T/out")"

# What cannot be read is not mended, but it goes with its snapshot.
damage rewrite "$(uri web)" 100
damage verify "$(uri web)"
parallax snapshot rm web@first
sound()
{
    parallax check >"$T/out"
}
wait_for 60 sound
parallax check --repair | grep -q 'all sound' || fail "check --repair"
damage verify "$(uri web)"
