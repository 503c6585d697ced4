#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# NBD over TCP on loopback. Other addresses are refused as long as there is no TLS.

. "$(dirname "$0")/lib.sh"
requires nbdinfo nbdcopy

free_port()
{
    /usr/bin/python3 -c '
import socket
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    print(s.getsockname()[1])'
}

port=$(free_port)
start_up "$T/store" --capacity 2G --nbd "127.0.0.1:$port"
parallax disk create d 64M
[ "$(parallax disk uri d)" = "nbd://127.0.0.1:$port/d" ] ||
    fail "the URI is $(parallax disk uri d)"
[ "$(nbdinfo --size "nbd://127.0.0.1:$port/d")" = 67108864 ] || fail "nbdinfo"
nbdinfo --list "nbd://127.0.0.1:$port" | grep -q 'export="d"' || fail "nbdinfo --list"

"$TESTS/islands.py" "$T/image" 67108864 4
nbdcopy --connections=4 "$T/image" "$(parallax disk uri d)"
nbdcopy --connections=4 "$(parallax disk uri d)" "$T/out"
cmp "$T/image" "$T/out" || fail "what was copied in did not come out"

# import and export find the daemon's address by themselves.
parallax import "$T/image" e
parallax export e - | cmp - "$T/image" || fail "import and export over TCP"

# The port is taken; that store is not touched.
expect_error "$port.*in use" \
    parallax up "$T/other" --detach --capacity 1G --nbd "127.0.0.1:$port"

lib_stores+=("$T/other") # should it start all the same
for address in 0.0.0.0:10809 192.0.2.7:10809 '[::]:10809' '[2001:db8::1]:10809'; do
    expect_error "loopback" parallax up "$T/other" --detach --nbd "$address"
done
for address in 127.0.0.1:0 127.0.0.1:65536 127.0.0.1:99999999999999999999; do
    expect_error "port" parallax up "$T/other" --detach --nbd "$address"
done
