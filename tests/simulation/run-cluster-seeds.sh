#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 900
# builds: release asan
# alone: yes
#
# run-cluster-seeds.sh [FIRST LAST]: histories of whole clusters. The seeds in
# cluster-regressions.txt, one seed twice (equal seeds must give equal runs), then FIRST
# to LAST: 2,000 of them, fewer with sanitizers.
set -u

here=$(cd "$(dirname "$0")" && pwd)
build=${PARALLAX_BUILD:-$here/../../build/release}
fleet=$build/tests/simulation/fleet
first=${1:-1}
last=${2:-2000}
chunk=100
if [ $# -eq 0 ] && [[ $build == *asan* ]]; then
    last=100
    chunk=25
fi

[ -x "$fleet" ] || {
    echo "$fleet is not built" >&2
    exit 1
}
export MALLOC_PERTURB_=0 # every seed fills its memory by itself

T=$(mktemp -d "${TMPDIR:-/tmp}/parallax-fleet.XXXXXX")
trap 'rm -rf "$T"' EXIT

# Prints what a failed range of seeds had to say.
run_range()
{
    local from=$1 to=$2
    "$fleet" "$from" "$to" >"$T/$from.out" 2>&1 && return
    cat "$T/$from.out"
    touch "$T/failed"
}

while read -r seed _; do
    [[ $seed =~ ^[0-9]+$ ]] && run_range "$seed" "$seed"
done <"$here/cluster-regressions.txt"

"$fleet" "$first" -v >"$T/once" 2>&1
"$fleet" "$first" -v >"$T/again" 2>&1
cmp -s "$T/once" "$T/again" || {
    echo "seed $first ran in two ways:"
    diff "$T/once" "$T/again" | head -n 20
    touch "$T/failed"
}

for ((from = first; from <= last; from += chunk)); do
    while [ "$(jobs -rp | wc -l)" -ge 2 ]; do
        wait -n
    done
    to=$((from + chunk - 1 < last ? from + chunk - 1 : last))
    run_range "$from" "$to" &
done
wait

[ ! -e "$T/failed" ] || exit 1
echo "seeds $first to $last passed"
