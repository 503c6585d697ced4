#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 280
# builds: release
#
# Hosts in network namespaces, between which ways are cut under load: to one host or
# between two, in both directions or in one. Nothing acknowledged may be lost, nobody may
# read what is old, and as long as a majority is connected no request of a host that is
# connected to some of it may hang. See judge.py for what is looked at, and
# cluster_partition.py for the stories, of which STORIES names others.

. "$(dirname "$0")/lib.sh"
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"
[ "$(id -u)" = 0 ] || skip "network namespaces need root"
ip netns add "plx-try-$$" 2>/dev/null || skip "network namespaces cannot be made here"
ip netns del "plx-try-$$"

hosts=${HOSTS:-3}
"$PARALLAX_SOURCE/tools/localcluster" --netns --capacity 1G "$hosts" "$T/c" \
    >"$T/c.out" 2>&1 &
cluster=$!
end_cluster()
{
    kill -TERM "$cluster" 2>/dev/null
    wait "$cluster"
}
cleanup_fn end_cluster
is_ready()
{
    grep -qx ready "$T/c.out"
}
wait_for 60 is_ready
PLX_NETNS=$(sed -n 's/.*ip netns exec \(plx-[0-9]*\)-1 .*/\1/p' "$T/c.out")
export PLX_NETNS
if [ "$hosts" -lt 5 ]; then
    stories=(leader_and_owner leader_and_copy one_way lone_owner)
else
    stories=(lone_copy lone_leader deaf_leader mute_leader)
fi
[ -z "${STORIES-}" ] || read -r -a stories <<<"$STORIES"
T=$T/c timeout 250 /usr/bin/python3 "$TESTS/cluster_partition.py" "$hosts" \
    "${stories[@]}" ||
    fail "see above"
