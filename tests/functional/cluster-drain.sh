#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 240
# builds: release
#
# A fourth host joins and gets its share, no more; then one is drained, with a client
# that goes on writing, and removed: nothing is lost, and what is left is whole. A drain
# that is called off leaves the host where it was.

. "$(dirname "$0")/lib.sh"
requires nbdcopy jq
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

is_ok()
{
    is_whole && [ "$(parallax status --json | jq -r .health)" = ok ]
}
start_cluster 3 --capacity 1G
wait_for 60 is_ok
parallax disk create web 256M
head -c 128M /dev/urandom >"$T/data"
nbdcopy "$T/data" "$(uri web "$T/2")"
# Until it is closed, so that all of its extents have ended.
is_closed()
{
    [ "$(parallax disk ls --json | jq ".[0].served")" = false ]
}
wait_for 60 is_closed

# --- a fourth one ---
join_cluster 4 --capacity 1G
export PARALLAX=$T/1
is_even()
{
    [ "$(parallax node show 4 --json | jq '.groups >= 31 and .groups_not_whole == 0')" = \
        true ] && is_ok
}
wait_for 100 is_even
moved=$(parallax -c "$T/4" status --json | jq .live_bytes)
share=$((128 * 1024 * 1024 * 3 / 4))
echo "node 4 has $moved bytes, its share of the data is $share"
# A disk of so few extents is in a few groups only, so that this is a matter of luck, too.
[ "$moved" -le $((share * 3 / 2)) ] || fail "too much was moved to it"

# --- called off ---
parallax node drain 1 --no-wait
[ "$(parallax node show 1 --json | jq -r .draining)" = true ] || fail "draining"
expect_error 'drain it first' parallax -c "$T/2" node rm 1
parallax node undrain 1
wait_for 100 is_even

# --- drained under load ---
/usr/bin/python3 - "$(uri web "$T/2")" "$T/data" "$T/held" "$T/stop" <<'END' &
import nbd, os, random, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
content = bytearray(open(sys.argv[2], "rb").read())
open(sys.argv[3], "w").close()
while not os.path.exists(sys.argv[4]):
    block = random.randrange(len(content) // 4096) * 4096
    data = random.randbytes(4096)
    h.pwrite(data, block)
    content[block:block + 4096] = data
    assert h.pread(4096, block) == data
h.shutdown()
with open(sys.argv[2], "wb") as file:
    file.write(content)
END
client=$!
wait_for 60 test -e "$T/held"
timeout 150 parallax node drain 4 >"$T/drain" || fail "draining takes too long"
grep -q '^node 4: [0-9]* groups left, .* to copy' "$T/drain" || fail "no progress"
grep -q "^node 4 has no data any more" "$T/drain" || fail "no end"
parallax node show 4 | grep -q '^groups *0, 0 of them' || fail "node show"
parallax node rm 4
wait_for 60 is_gone "$(daemon_pid "$T/4")"
touch "$T/stop"
wait "$client" || fail "the client"
unchecked "$T/4"
wait_for 60 is_ok
[ "$(parallax node ls --json | jq length)" = 3 ] || fail "node ls"
nbdcopy "$(uri web "$T/3")" "$T/back"
cmp -n $((128 << 20)) "$T/data" "$T/back" || fail "web is another one"
