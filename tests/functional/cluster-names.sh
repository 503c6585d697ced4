#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 200
#
# Hosts that are known by names: a cluster of three goes on when one of the names, or all,
# stand for other addresses, without any command. Names that cannot work are refused
# before anything is made. In namespaces, with an /etc/hosts of the test's own.

if [ -z "${PLX_NAMES_INSIDE-}" ]; then
    if [ "$(id -u)" != 0 ] || ! unshare --net --mount true 2>/dev/null; then
        echo "namespaces need root, or cannot be made here"
        exit 77
    fi
    export PLX_NAMES_INSIDE=yes
    exec unshare --net --mount "$0"
fi
. "$(dirname "$0")/lib.sh"
requires nbdcopy jq ip

ip link set lo up
for last in 1 2 3 11 12 13 21; do
    ip address add "10.77.0.$last/32" dev lo
done
node_address()
{
    # shellcheck disable=SC2154 # start_cluster sets it
    echo "plx-$1.test:$((lib_port + $1))"
}
# name_hosts LAST...: what plx-1, plx-2 ... stand for from now on; -: for nothing
name_hosts()
{
    local last i=0
    echo "127.0.0.1 localhost" >"$T/hosts"
    echo "127.0.1.1 plx-own.test" >>"$T/hosts"
    echo "10.77.0.99 plx-other.test" >>"$T/hosts"
    for last in "$@"; do
        i=$((i + 1))
        [ "$last" = - ] || echo "10.77.0.$last plx-$i.test" >>"$T/hosts"
    done
}
is_ok()
{
    local i
    for i in 1 2 3; do
        [ "$(parallax -c "$T/$i" status --json | jq -r .health)" = ok ] || return 1
    done
}
read_back()
{
    nbdcopy "$(uri web "$T/$1")" "$T/back"
    cmp "$T/data" "$T/back" || fail "host $1 reads something else"
}
name_hosts 1 2 3 21
mount --bind "$T/hosts" /etc/hosts

# --- names that cannot work ---
for command in "cluster init" "cluster join"; do
    at=() more=(--capacity 1G)
    if [ "$command" = "cluster join" ]; then
        at=(plx-1.test:9) more+=(--token "plxj-none")
    fi
    # shellcheck disable=SC2086 # two words
    expect_error 'plx-none.test: no such host' parallax $command "$T/no" "${at[@]}" \
        --listen plx-none.test:9 "${more[@]}"
    # shellcheck disable=SC2086
    expect_error 'plx-own.test: .* loopback .* others cannot reach' \
        parallax $command "$T/no" "${at[@]}" --listen plx-own.test:9 "${more[@]}"
    # shellcheck disable=SC2086
    expect_error 'plx-other.test:9: .*annot assign' parallax $command "$T/no" \
        "${at[@]}" --listen plx-other.test:9 "${more[@]}"
done
for name in store node; do
    [ ! -e "$T/no/$name" ] || fail "a refused node has left its $name"
done

start_cluster 3 --capacity 1G
wait_for 60 is_ok
token=$(parallax cluster token)
expect_error 'plx-none.test:9: no node answers there' parallax cluster join "$T/4" \
    plx-none.test:9 --token "$token" --listen "$(node_address 4)"
parallax disk create web 16M
head -c 16M /dev/urandom >"$T/data"
nbdcopy "$T/data" "$(uri web)"

# --- one stands for another address, and for none ---
kill9_daemon "$T/3"
name_hosts 1 2 -
export PARALLAX=$T/1
expect_error 'plx-3.test:[0-9]*: no such host' parallax up "$T/3" --detach
name_hosts 1 2 99
expect_error 'plx-3.test:[0-9]*: .*annot assign' parallax up "$T/3" --detach
name_hosts 1 2 13
start_up "$T/3"
wait_for 60 is_ok
read_back 3

# --- all do ---
for i in 1 2 3; do
    kill9_daemon "$T/$i"
done
name_hosts 11 12 1
for i in 1 2 3; do
    parallax up "$T/$i" --detach &
done
wait
export PARALLAX=$T/1
wait_for 60 is_ok
read_back 2
