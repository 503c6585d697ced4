#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 200
#
# Hosts that join and are reached by some of the others only, or by none: what is wrong is
# said in bounded time, a guest goes on, and it can be mended, or the node removed. Hosts
# in network namespaces.

. "$(dirname "$0")/lib.sh"
requires jq ip
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"
requires_root
ip netns add "plx-try-$$" 2>/dev/null || skip "network namespaces cannot be made here"
ip netns del "plx-try-$$"

"$PARALLAX_SOURCE/tools/localcluster" --netns --capacity 1G 3 "$T/c" >"$T/c.out" 2>&1 &
cluster=$!
end_cluster()
{
    local host
    for host in 1 2 3 4 5 6; do
        end_daemon KILL "$T/c/$host"
        [ -z "${bridge-}" ] || ip netns del "$bridge-$host" 2>/dev/null
    done
    kill -TERM "$cluster" 2>/dev/null
    wait "$cluster"
}
cleanup_fn end_cluster
is_ready()
{
    grep -qx ready "$T/c.out"
}
wait_for 60 is_ready
bridge=$(sed -n 's/.*ip netns exec \(plx-[0-9]*\)-1 .*/\1/p' "$T/c.out")

# on HOST COMMAND...
on()
{
    local host=$1
    shift
    ip netns exec "$bridge-$host" "$@"
}
# add_host HOST: a further namespace, reached by all
add_host()
{
    ip netns add "$bridge-$1"
    ip link add "v$1-${bridge#plx-}" type veth peer name eth0 netns "$bridge-$1"
    ip link set "v$1-${bridge#plx-}" master "$bridge" up
    ip -n "$bridge-$1" addr add "10.87.0.$1/24" dev eth0
    ip -n "$bridge-$1" link set eth0 up
    ip -n "$bridge-$1" link set lo up
}
# join HOST CONTACT ADDRESS
join()
{
    on "$1" parallax cluster join "$T/c/$1" "$2:7100" --token "$token" \
        --listen "$3:7100" --capacity 1G
}
state_of()
{
    parallax -c "$T/c/$1" node ls --json | jq -r ".[] | select(.node == $2).state"
}
is()
{
    [ "$(state_of "$1" "$2")" = "$3" ]
}
is_ok()
{
    local host
    for host in "$@"; do
        [ "$(parallax -c "$T/c/$host" status --json | jq -r .health)" = ok ] || return 1
    done
}
export PARALLAX=$T/c/1
wait_for 60 is_ok 1 2 3
parallax disk create web 16M
/usr/bin/python3 "$TESTS/client-good.py" "$(uri web "$T/c/2")" "$T/stop" &
guest=$!

# --- host 4 says that it listens where no other host comes ---
add_host 4
ip -n "$bridge-4" addr add 10.99.0.4/32 dev lo
token=$(parallax cluster token)
join 4 10.87.0.1 10.99.0.4 >/dev/null
on 4 parallax up "$T/c/4" --detach >"$T/4.out" 2>&1 &
up=$!

# --- host 5 is reached by host 1 only ---
add_host 5
for host in 2 3; do
    ip -n "$bridge-$host" route add blackhole 10.87.0.5/32
done
token=$(parallax cluster token)
expect_error '10.87.0.2:7100: no node answers there' join 5 10.87.0.2 10.87.0.5
join 5 10.87.0.1 10.87.0.5 >/dev/null
on 5 parallax up "$T/c/5" --detach
wait_for 30 is 1 5 up
says_it_does_not_reach()
{
    parallax -c "$T/c/$1" node ls | grep -q "10.87.0.$2:7100 .*up, not connected"
}
wait_for 10 says_it_does_not_reach 2 5 # it may hear of it a little later
parallax -c "$T/c/2" disk create other 1M
parallax -c "$T/c/5" disk create fifth 1M

# --- host 4 says what is wrong, and is mended ---
! wait "$up" || fail "host 4 has started"
grep -q 'no node has connected to this one at 10.99.0.4:7100: can they' "$T/4.out" ||
    fail "host 4 says: $(cat "$T/4.out")"
[ "$(wc -l <"$T/4.out")" = 1 ] || fail "host 4 says more than a line"
is 1 4 down || fail "host 4 is $(state_of 1 4)"
on 4 parallax up "$T/c/4" --detach --listen 10.87.0.4:7100
wait_for 30 is 2 4 up

# --- host 5 is removed; another one that is never started as well ---
parallax -c "$T/c/5" down
wait_for 30 is 1 5 down
parallax node rm 5 --lost
token=$(parallax cluster token)
add_host 6
join 6 10.87.0.1 10.87.0.6 >/dev/null
wait_for 30 is 1 6 down
parallax node rm 6
[ "$(parallax node ls --json | jq -r '[.[].node] | join(" ")')" = "1 2 3 4" ] ||
    fail "somebody is left"
wait_for 60 is_ok 1 2 3 4
touch "$T/stop"
wait "$guest" || fail "the guest was served badly"
parallax -c "$T/c/2" check
