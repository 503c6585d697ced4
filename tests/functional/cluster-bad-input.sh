#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 200
#
# What does not fit together, with a guest that goes on: nodes and certificates of another
# cluster, nodes at each other's addresses, files of several nodes in one folder, stores
# that a newer program has written. Each is refused with its own message, and changes
# nothing.

. "$(dirname "$0")/lib.sh"
requires jq openssl
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

start_cluster 3 --capacity 256M
is_ok()
{
    [ "$(parallax status --json | jq -r .health)" = ok ] && is_whole
}
wait_for 60 is_ok
parallax disk create web 16M
/usr/bin/python3 "$TESTS/client-good.py" "$(uri web)" "$T/stop" &
guest=$!
says()
{
    grep -q "$2" "$1/log"
}
# edit FILE FILTER
edit()
{
    jq "$2" "$1" >"$T/edited"
    cat "$T/edited" >"$1"
}
uid=$(jq -r .cluster "$T/1/node/identity")

# --- a node of another cluster, which looks for nodes at addresses of this one ---
# shellcheck disable=SC2154 # start_cluster sets it
parallax cluster init "$T/b" --listen "127.0.0.1:$lib_port" --capacity 256M >/dev/null
other=$(jq -r .cluster "$T/b/node/identity")
edit "$T/b/node/identity" ".peers = [{\"node\": 2, \"address\": \"$(node_address 2)\"},
    {\"node\": 3, \"address\": \"$(node_address 3)\"}]"
start_up "$T/b"
unchecked "$T/b" # its address is in use
for i in 2 3; do
    wait_for 20 says "$T/b" "node $i: .*certificate is not accepted"
    grep -q "node $i of another cluster, $uid" "$T/b/log" || fail "which cluster?"
    grep -q 'not let in: .*it does not accept our certificate' "$T/$i/log" ||
        fail "host $i does not say that it was asked"
done
stop_daemon "$T/b"

# It has the address of a node of this cluster.
export PARALLAX=$T/1
stop_daemon "$T/3"
edit "$T/b/node/identity" ".peers = [] | .address = \"$(node_address 3)\""
start_up "$T/b"
export PARALLAX=$T/1
wait_for 20 says "$T/1" "node 3: .*is of node 1 of another cluster, $other"
wait_for 20 node_is 3 down
token=$(parallax -c "$T/1" cluster token)
expect_error 'not of the cluster that made this token' parallax cluster join "$T/no" \
    "$(node_address 3)" --token "$token" --listen "127.0.0.1:$((lib_port + 9))"
stop_daemon "$T/b"
# With its certificate somebody comes to a node of this one.
s_client()
{
    timeout 20 openssl s_client -tls1_3 -quiet -verify_quiet -cert "$T/b/node/cert.pem" \
        -key "$T/b/node/cert.pem" -connect "$(node_address 1)" </dev/null >"$T/out" 2>&1
}
! s_client || fail "a certificate of another cluster is taken"
says "$T/1" "not let in: .*it is of node 1 of another cluster, $other" ||
    fail "host 1 does not say who came"

# --- files of several nodes in one folder ---
# refused WHAT REGEX [store]: host 3 does not start, and what it was told stays as it is;
# so does the store if that is not even opened
refused()
{
    cat "$T/3/node/"* >"$T/node.before"
    [ $# -lt 3 ] || cp "$T/3/store" "$T/store.before"
    expect_error "$2" parallax up "$T/3" --detach
    cat "$T/3/node/"* | cmp - "$T/node.before" || fail "$1: something has changed"
    [ $# -lt 3 ] || cmp "$T/3/store" "$T/store.before" || fail "$1: the store has changed"
    rm -r "$T/3"
    cp -a "$T/3.good" "$T/3"
}
cp -a "$T/3" "$T/3.good"
cp "$T/2/node/cert.pem" "$T/3/node/cert.pem"
refused "the key of node 2" 'our certificate is of node 2, not of node 3'
cp "$T/b/node/cert.pem" "$T/3/node/cert.pem"
refused "a key of another cluster" 'our certificate is of another cluster'
rm -r "$T/3/node"
cp -a "$T/b/node" "$T/3/node"
refused "an identity of another cluster" 'another store than that of this node'
cp -a "$T/2/store" "$T/3/store"
refused "the store of node 2" 'another store|does not belong|not the'
edit "$T/3/node/identity" '.node = 2'
refused "the number of node 2" 'our certificate is of node 3, not of node 2'

# --- written by a newer program ---
edit "$T/3/node/identity" '.version = 9 | .what = "ever"'
refused "a newer identity" 'identity: version 9: a newer program wrote it' store
"$TESTS/newer.py" store "$T/3/store"
refused "a newer store" 'store of format 99, .*newer version of this program' store
"$TESTS/newer.py" features "$T/3/store"
refused "a store with features" 'store of format 1, features 0x10000000000, .*newer' store
"$TESTS/newer.py" state "$T/3/meta"
refused "a newer state" 'version 2: a newer program wrote it'

# --- and all is as it was ---
start_up "$T/3"
export PARALLAX=$T/1
wait_for 60 is_ok
touch "$T/stop"
wait "$guest" || fail "the guest was served badly"
