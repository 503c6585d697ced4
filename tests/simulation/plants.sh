#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 900
# slow: yes
#
# plants.sh [NAME...]: builds with planted bugs (runtime/plant.h) and sees that each is
# found: by the simulator within so many seeds, of one host or of whole clusters, or by a
# unit test. Without a bug switched on the same build must pass what found them.
set -u

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
build=$top/build/plants
seeds_max=200
cluster_seeds_max=1000

# What a simulated history does not reach. Space of an extent is not yet given to others
# while its log can be scanned for it, nothing is compacted, and with one copy a cut
# leaves no void batch. There is one node, and no member fails alone.
declare -A by_unit_test=(
    [RANK_FROM_LIVE]=test_store
    [RECYCLED_HEADER]=test_store_crash
    [VOID_REPLAYED]=test_log_protocol
    [SHORT_COPY_WHOLE]=test_recovery_random
    [MERGE_FORGOTTEN]=test_recovery_random
    [NEWER_DROPPED]=test_recovery_random
    [RESTART_IGNORED]=test_log_members
    [SLOW_ANYWHERE]=test_log_members
    [LEASE_UNWATCHED]=test_log_lease
    [LENGTH_EARLY]=test_disk_log
    [READ_AFTER_LEASE]=test_hand_over
    [APPEND_CREATES]=test_replica_remote
    [SYNC_STOPPED]=test_replica_remote
    [SCAN_FORGOTTEN]=test_replica_remote
    [OTHER_STORE]=test_replica_remote
    [ABSENT_FORGOTTEN]=test_membership
    [UNFLUSHED_STAYS]=test_disk_log
    [RETAINED_EARLY]=test_log_protocol
    [EPOCH_REUSED]=test_log_protocol
    [DAMAGED_COUNTS]=test_log_protocol
    [FLUSHED_FORGOTTEN]=test_log_protocol
    [SCANNED_ENOUGH]=test_log_protocol
    [GAP_PASSED]=test_log_protocol
    [LAST_UNSTOPPED]=test_log_protocol
    [LOST_WANTED]=test_log_protocol
    [AGAIN_NO_RESERVE]=test_log_protocol
    [FORMER_COMMANDS]=test_log_protocol
    [UNKNOWN_REFUSED]=test_outage
    [TRIM_UNNOTED]=test_install
    [REJOINS_WHOLE]=test_cluster_groups
    [WHOLE_EARLY]=test_recovery
    [COPY_DROPPED]=test_recovery
    [LEAVES_EARLY]=test_placement
)

# By histories of whole clusters: the seed that found it last. If it does not any more,
# all from 1 on are tried.
declare -A by_cluster=(
    [ACK_MISSING]=424
    [SHORTEST_PREFIX]=29
    [STALE_WHOLE]=2
    [ABANDONED_LEFT]=25
)

T=$(mktemp -d "${TMPDIR:-/tmp}/parallax-plants.XXXXXX")
trap 'rm -rf "$T"' EXIT
export MALLOC_PERTURB_=0

unset PARALLAX_PLANT
mapfile -t unit_tests < <(printf 'tests/unit/%s\n' "${by_unit_test[@]}" | sort -u)
if ! {
    [ -e "$build/build.ninja" ] ||
        CC=gcc meson setup "$build" "$top" -Dplants=true -Dwerror=true \
            -Dfolders=runtime,blockstore,replication,cow,tests
    ninja -C "$build" tests/simulation/sim tests/simulation/fleet "${unit_tests[@]}"
} >"$T/build.log" 2>&1; then
    tail -n 20 "$T/build.log"
    exit 1
fi
sim=$build/tests/simulation/sim
fleet=$build/tests/simulation/fleet

names=("$@")
[ ${#names[@]} -gt 0 ] || mapfile -t names < <(
    sed -n 's/^ *X(\([A-Z_]*\), .*/\1/p' "$top/runtime/plant.h"
)

# find_by_seeds NAME: prints the first seed that fails.
find_by_seeds()
{
    local seed
    for ((seed = 1; seed <= seeds_max; seed++)); do
        PARALLAX_PLANT=$1 timeout 120 "$sim" "$seed" >"$T/$1.out" 2>&1 && continue
        echo "$seed"
        return 0
    done
    return 1
}

# fails_with NAME FIRST LAST: prints the first seed of a cluster that fails.
fails_with()
{
    PARALLAX_PLANT=$1 timeout 200 "$fleet" "$2" "$3" >"$T/$1.out" 2>&1 && return 1
    sed -n 's/^seed \([0-9]*\)[,:].*/\1/p' "$T/$1.out" | head -n 1 | grep .
}

find_by_cluster()
{
    local name=$1 hint=${by_cluster[$1]} seed
    if ! seed=$(fails_with "$name" "$hint" "$hint") &&
        ! seed=$(fails_with "$name" 1 "$cluster_seeds_max"); then
        echo "NOT FOUND $name in $cluster_seeds_max clusters"
        touch "$T/failed"
        return
    fi
    echo "found $name: cluster $seed: $(grep -m 1 '^seed' "$T/$name.out" | cut -c 1-150)"
    if ! "$fleet" "$seed" >"$T/$name.out" 2>&1; then
        echo "cluster $seed fails without $name:"
        cat "$T/$name.out"
        touch "$T/failed"
    fi
}

# passes TEST: without a bug. Once is enough for all that it finds.
passes()
{
    [ -e "$T/$1.passes" ] && return 0
    "$build/tests/unit/$1" >"$T/$1.$BASHPID.out" 2>&1 && touch "$T/$1.passes"
}

find_one()
{
    local name=$1 test=${by_unit_test[$1]-} seed
    if [ -n "${by_cluster[$name]-}" ]; then
        find_by_cluster "$name"
        return
    fi
    if [ -n "$test" ]; then
        if PARALLAX_PLANT=$name "$build/tests/unit/$test" >"$T/$name.out" 2>&1; then
            echo "NOT FOUND $name: $test passes"
            touch "$T/failed"
        elif ! passes "$test"; then
            echo "$test fails without $name"
            touch "$T/failed"
        else
            echo "found $name: $test"
        fi
        return
    fi
    if ! seed=$(find_by_seeds "$name"); then
        echo "NOT FOUND $name in $seeds_max seeds"
        touch "$T/failed"
        return
    fi
    echo "found $name: seed $seed: $(head -n 1 "$T/$name.out" | cut -c 1-150)"
    if ! "$sim" "$seed" >"$T/$name.out" 2>&1; then
        echo "seed $seed fails without $name:"
        cat "$T/$name.out"
        touch "$T/failed"
    fi
}

for name in "${names[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge 2 ]; do
        wait -n
    done
    find_one "$name" &
done
wait
[ ! -e "$T/failed" ]
