#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# builds: release asan
#
# The host that serves a disk is lost for good, and nobody attaches the disk again. All
# the same the others bring its log to an end, so that what is missing is copied and all
# gets whole; and what was written is there when somebody attaches it at last.

. "$(dirname "$0")/lib.sh"
requires nbdcopy jq
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

start_cluster 4 --capacity 1G
is_ok()
{
    is_whole && [ "$(parallax status --json | jq -r .health)" = ok ]
}
wait_for 60 is_ok
parallax disk create web 64M
parallax disk create other 64M
head -c 8M /dev/urandom >"$T/data"
/usr/bin/python3 - "$T/data" "$T/held" "$(uri web "$T/3")" "$(uri other "$T/3")" <<'END' &
import nbd, sys, time
data = open(sys.argv[1], "rb").read()
handles = [nbd.NBD(), nbd.NBD()]
for h, uri in zip(handles, sys.argv[3:]):
    h.connect_uri(uri)
    for at in range(0, len(data), 1 << 20):
        h.pwrite(data[at:at + (1 << 20)], at)
open(sys.argv[2], "w").close()
time.sleep(60)
END
holder=$!
wait_for 30 test -e "$T/held"
kill9_daemon "$T/3"
unchecked "$T/3"
kill "$holder"
wait "$holder" || true
wait_for 30 node_is 3 down
parallax node rm 3 --lost
wait_for 60 is_ok
for disk in web other; do
    nbdcopy "$(uri "$disk" "$T/2")" "$T/back"
    cmp -n $((8 << 20)) "$T/data" "$T/back" || fail "$disk is another one"
done
