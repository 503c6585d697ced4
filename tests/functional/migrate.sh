#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 180
#
# Three hosts: a disk is handed over by hand, and for a guest that comes; not away from
# its clients. A snapshot that is removed at one host while another reads it stays until
# it is no longer read, and its space comes back then.

. "$(dirname "$0")/lib.sh"
requires nbdcopy jq
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

start_cluster 3 --capacity 1G
wait_for 60 is_whole
parallax disk create web 32M
head -c 24M /dev/urandom >"$T/old"
head -c 24M /dev/urandom >"$T/new"

# owner_is NODE, as host 1 knows it
owner_is()
{
    parallax disk owner web | grep -q "^node $1 at" || fail "not node $1 has it"
}

# --- by hand ---
nbdcopy "$T/old" "$(parallax serve web)"
owner_is 1
parallax -c "$T/3" migrate web --to 2
owner_is 2
parallax migrate web --to "$(node_address 3)"
owner_is 3
parallax migrate web
owner_is 1
parallax -c "$T/2" serve web >"$T/uri"
owner_is 2
[ "$(cat "$T/uri")" = "$(uri web "$T/2")" ] || fail "serve: $(cat "$T/uri")"
expect_error 'no such node' parallax migrate web --to 9
expect_error 'no such disk' parallax migrate wep --to 2
expect_error 'no such disk' parallax -c "$T/3" serve wep --incoming
expect_error 'a snapshot is read everywhere' parallax serve web@one --incoming
expect_error 'needs NAME' parallax migrate --to 2

# --- in use, and for a guest that comes ---
cat >"$T/holder.py" <<'END'
import nbd, os, sys, time
# holder.py URI HELD DONE FILE: reads until DONE appears, and then all of it into FILE.
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pread(4096, 0)
open(sys.argv[2], "w").close()
while not os.path.exists(sys.argv[3]):
    time.sleep(0.05)
with open(sys.argv[4], "wb") as file:
    for at in range(0, h.get_size(), 1 << 20):
        file.write(h.pread(1 << 20, at))
h.shutdown()
END
hold()
{
    rm -f "$T/held" "$T/done"
    /usr/bin/python3 "$T/holder.py" "$1" "$T/held" "$T/done" "$T/read" &
    holder=$!
    wait_for 30 test -e "$T/held"
}
let_go()
{
    touch "$T/done"
    wait "$holder" || fail "who read had an error"
    cmp -n $((24 << 20)) "$1" "$T/read" || fail "who read got something else"
}

hold "$(uri web "$T/2")"
expect_error 'migrate: disk web: node 2 does not hand it over' parallax migrate web --to 3
expect_error 'serve: disk web: node 2' parallax serve web
incoming=$(parallax -c "$T/3" serve web --incoming)
[ "$incoming" = "$(uri web%3Fincoming "$T/3")" ] || fail "serve --incoming: $incoming"
owner_is 2
parallax snapshot create web@one
nbdcopy --destination-is-zero "$T/new" "$incoming"
owner_is 3
let_go "$T/new" # from node 3, by node 2

# --- a snapshot that is read elsewhere ---
live()
{
    parallax status --json | jq .live_bytes
}
both_are_there()
{
    [ "$(live)" -gt $((44 << 20)) ]
}
space_is_back()
{
    [ "$(live)" -lt $((36 << 20)) ]
}

wait_for 30 both_are_there
hold "$(uri web@one "$T/2")"
parallax -c "$T/3" snapshot rm web@one
expect_error 'no snapshot one' parallax -c "$T/1" snapshot rm web@one
parallax snapshot create web@two # more to do meanwhile
sleep 3
both_are_there || fail "it was freed while it was read"
let_go "$T/old"
wait_for 60 space_is_back
nbdcopy "$(uri web@two)" "$T/read"
cmp -n $((24 << 20)) "$T/new" "$T/read" || fail "the snapshot that is left"
