#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 240
# builds: release
#
# A store that was used alone becomes the first node of a cluster, and machines join it:
# with a good token, once. Everybody else is told why not.

. "$(dirname "$0")/lib.sh"
requires nbdcopy

port=$(first_port)
first=127.0.0.1:$port

# join NAME PORT TOKEN [OPTION]...: node NAME, without starting it
join()
{
    local name=$1 at=127.0.0.1:$(($2 + port)) token=$3
    shift 3
    parallax cluster join "$T/$name" "$first" --token "$token" --listen "$at" \
        --capacity 1G "$@"
}

# --- a store that was used alone grows in place ---
start_up "$T/one" --capacity 1G
parallax disk create before 16M
head -c 4M /dev/urandom >"$T/data"
nbdcopy "$T/data" "$(uri before)"
expect_error 'is of no cluster but its own' parallax cluster token
expect_error 'in use by parallaxd' parallax cluster init "$T/one" --listen "$first"
parallax down
expect_error 'a node.s address is HOST:PORT' parallax cluster init "$T/one" --listen here
expect_error 'they can reach' parallax cluster init "$T/one" --listen "0.0.0.0:$port"
expect_error 'cannot|Cannot' parallax cluster init "$T/one" --listen "192.0.2.1:$port"
expect_error 'needs --listen' parallax cluster init "$T/one"
parallax cluster init "$T/one" --listen "$first" --domain rack-1
expect_error 'is node 1 of cluster' parallax cluster init "$T/one" --listen "$first"
[ "$(stat -c %a "$T/one/node")" = 700 ] || fail "the mode of node/"
[ "$(stat -c %a "$T/one/node/cert.pem")" = 600 ] || fail "the mode of the key"
start_up "$T/one"
nbdcopy "$(uri before)" "$T/back"
cmp -n 4194304 "$T/back" "$T/data" || fail "the disk has changed"
[ "$(parallax node ls --json | grep -c '"state": "up"')" = 1 ] || fail "node ls"
parallax node show 1 | grep -q '^domain *rack-1$' || fail "its domain"

# --- tokens ---
early=$(parallax cluster token --valid 1)
early_at=$SECONDS
token=$(parallax cluster token)
[[ $token =~ ^plxj-[A-Za-z0-9_-]{68}$ ]] || fail "no token: $token"
expect_error 'minutes, from 1 to' parallax cluster token --valid 0
expect_error 'this is no token' join two 2 "${token%??}"
other=plxj-A${token#plxj-?}
[ "$other" != "$token" ] || other=plxj-B${token#plxj-?}
expect_error 'a character of this token is wrong' join two 2 "$other"
expect_error 'no node answers' parallax cluster join "$T/two" 127.0.0.1:1 \
    --token "$token" --listen 127.0.0.1:$((port + 2))
expect_error 'Address already in use' join two 0 "$token"
expect_error 'cannot|Cannot' parallax cluster join "$T/two" "$first" --token "$token" \
    --listen 192.0.2.1:7000
expect_error 'one word' join two 2 "$token" --domain "two words"
[ ! -e "$T/two/store" ] || fail "a refused node has made a store"
printf '%s\n' "$token" | join two 2 - || fail "the token from standard input"
expect_error 'is node 2 of cluster' join two 2 "$token"
expect_error 'refused: .*token' join three 3 "$token"

# Of another cluster: it is not even asked.
parallax cluster init "$T/other" --listen 127.0.0.1:$((port + 9)) --capacity 1G
start_up "$T/other"
strange=$(parallax cluster token)
expect_error 'not of the cluster that made this token' join three 3 "$strange"
stop_daemon "$T/other"
export PARALLAX=$T/one

# A folder that has a store.
mkdir "$T/full"
parallax up "$T/full" --detach --capacity 1G
stop_daemon "$T/full"
token=$(parallax cluster token)
expect_error 'has a store already' join full 4 "$token"

# What was interrupted after the answer goes on, with the same token, as the same node.
join three 3 "$token"
rm "$T/three/node/identity"
store=$(parallax node show 3 --json | sed -n 's/.*"store": "\(.*\)".*/\1/p')
printf '%s' "$store" >"$T/three/node/joining"
join three 3 "$token"
parallax node ls --json | grep -q '"node": 4' && fail "it is another node"

# Too late.
while [ $((SECONDS - early_at)) -lt 62 ]; do
    sleep 1
done
expect_error 'refused: .*token' join four 5 "$early"
for name in two three; do # nothing to check without the others
    unchecked "$T/$name"
done
