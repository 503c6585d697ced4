#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# builds: release asan
#
# nbdinfo: what the server says of itself, of disks and snapshots, of what is allocated.

. "$(dirname "$0")/lib.sh"
requires nbdinfo jq qemu-io

start_up "$T/store" --capacity 4G
parallax disk create web 1G
qemu-io -f raw -c 'write -P 1 4M 1M' -c 'write -P 2 5000k 4k' "$(uri web)" >"$T/qemu-io"
parallax snapshot create web@first
qemu-io -f raw -c 'discard 4M 512k' -c 'write -z -u 512M 1M' "$(uri web)" >"$T/qemu-io"

# is FILTER JSON: is it true?
is()
{
    jq -e "$1" <<<"$2" >/dev/null || fail "not so: $1: $2"
}

# allocated NAME: the areas that hold data, as "offset+length", in KiB.
allocated()
{
    nbdinfo --map --json "$(uri "$1")" | jq -r '
        [.[] | select(.type == 0) | "\(.offset / 1024)+\(.length / 1024)"] | join(" ")'
}

web=$(nbdinfo --json "$(uri web)")
is '.protocol == "newstyle-fixed"' "$web"
is '.structured and (.TLS | not)' "$web"
is '.exports | length == 1' "$web"
is '.exports[0]."export-name" == "web"' "$web"
is '.exports[0]."export-size" == 1073741824' "$web"
is '.exports[0].is_read_only == false' "$web"
is '.exports[0] | .can_flush and .can_fua and .can_trim and .can_zero' "$web"
is '.exports[0] | .can_fast_zero and .can_cache and .can_multi_conn' "$web"
is '.exports[0].is_rotational == false' "$web"
is '.exports[0].block_size_minimum == 1' "$web"
is '.exports[0].block_size_preferred == 4096' "$web"
is '.exports[0].contexts == ["base:allocation", "parallax:changed-since:first"]' "$web"

snapshot=$(nbdinfo --json "$(uri web@first)")
is '.exports[0]."export-size" == 1073741824' "$snapshot"
is '.exports[0].is_read_only' "$snapshot"
is '.exports[0] | .can_multi_conn and (.can_trim | not) and (.can_zero | not)' "$snapshot"

names=$(nbdinfo --list --json "nbd+unix://?socket=$PARALLAX/nbd.sock" |
    jq -r '[.exports[]."export-name"] | sort | join(" ")')
[ "$names" = "web web@first" ] || fail "the list of exports is: $names"

[ "$(nbdinfo --size "$(uri web)")" = 1073741824 ] || fail "--size"
nbdinfo --is read-only "$(uri web@first)" || fail "--is read-only"

[ "$(allocated web@first)" = "4096+1024" ] || fail "web@first: $(allocated web@first)"
[ "$(allocated web)" = "4608+512" ] || fail "web: $(allocated web)"

# changed NAME SNAPSHOT: the areas that have changed since, in the same way.
changed()
{
    nbdinfo --map="parallax:changed-since:$2" --json "$(uri "$1")" | jq -r '
        [.[] | select(.type == 1) | "\(.offset / 1024)+\(.length / 1024)"] | join(" ")'
}

[ "$(changed web first)" = "4096+512" ] || fail "changed: $(changed web first)"
[ "$(changed web@first first)" = "" ] || fail "changed: $(changed web@first first)"
if nbdinfo --map=parallax:changed-since:second "$(uri web)" >"$T/out" 2>&1; then
    fail "there should be no context of a snapshot that is not"
fi

if nbdinfo --size "$(uri nothing)" 2>"$T/err"; then
    fail "there should be no export 'nothing'"
fi
grep -q "no export named" "$T/err" || fail "unknown export: $(cat "$T/err")"
