#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 200
#
# The store of one host of three is full, the others have room: guests go on without
# it, reads find everything, status says which one and why; as soon as there is space
# again all gets whole.

. "$(dirname "$0")/lib.sh"
requires nbdcopy jq
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

start_cluster 2 --capacity 1G
join_cluster 3 --capacity 128M
export PARALLAX=$T/1
health()
{
    parallax -c "$T/$1" status --json | jq -r .health
}
is_ok()
{
    [ "$(health 1)" = ok ] && is_whole
}
wait_for 60 is_ok
parallax disk create web 16M
parallax disk create big 240M
/usr/bin/python3 "$TESTS/client-good.py" "$(uri web)" "$T/stop" &
guest=$!

# --- more than host 3 can hold ---
head -c 180M /dev/urandom >"$T/big"
nbdcopy --flush "$T/big" "$(uri big "$T/2")" || fail "a guest is told of the full host"
lacks()
{
    [[ $(health 1) == *"lack something"* ]]
}
is_full()
{
    parallax -c "$T/3" status | grep -q '^warning *\(nearly \)\{0,1\}full'
}
wait_for 30 is_full
wait_for 30 lacks
nbdcopy "$(uri big "$T/2")" "$T/back"
cmp -n $((180 << 20)) "$T/back" "$T/big" || fail "big has changed"
rm "$T/back"
for host in 1 2; do
    parallax -c "$T/$host" status | grep -q '^  full     node 3: .* free of 128M$' ||
        fail "host $host does not say that host 3 is full"
done
node_is 3 up || fail "host 3 is not up"

# --- space again ---
parallax disk rm big
parallax trash empty big
wait_for 60 is_ok
touch "$T/stop"
wait "$guest" || fail "the guest was served badly"
