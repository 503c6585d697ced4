#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# builds: release asan
#
# A disk that shrinks and grows never shows what lay behind its end; snapshots keep their
# own size. What would pull the ground from under a client is refused while there is one.

. "$(dirname "$0")/lib.sh"
requires qemu-io nbdinfo
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

# io NAME COMMAND...
io()
{
    local name=$1 arguments=() command
    shift
    for command in "$@"; do
        arguments+=(-c "$command")
    done
    [[ $name != *@* ]] || arguments+=(-r)
    qemu-io -f raw -t none "${arguments[@]}" "$(uri "$name")" >"$T/out" 2>&1 ||
        fail "$name: $*: $(cat "$T/out")"
    ! grep -iE 'failed|error' "$T/out" || fail "$name: $*: $(cat "$T/out")"
}

has_size()
{
    local size
    size=$(nbdinfo --size "$(uri "$1")")
    [ "$size" -eq $(($2 << 20)) ] || fail "$1 has $size bytes, not $2 MiB"
}

start_up "$T/store" --capacity 2G
parallax disk create d 64M
io d 'write -P 1 0 64M'
parallax snapshot create d@full

parallax disk resize d 16M
has_size d 16
parallax disk resize d 128M
has_size d 128
io d 'read -P 1 0 16M' 'read -P 0 16M 112M'
has_size d@full 64
io d@full 'read -P 1 0 64M'
parallax clone d@full c
has_size c 64
io c 'read -P 1 0 64M'

# A rollback restores the size, too, and what was written behind it is gone.
io d 'write -P 2 100M 1M'
parallax snapshot rollback d@full
has_size d 64
io d 'read -P 1 0 64M'
parallax disk resize d 128M
io d 'read -P 0 64M 64M'

# Durable at once.
parallax disk resize d 1M
io d 'write -P 3 0 1M'
kill9_daemon "$PARALLAX"
start_up "$T/store"
has_size d 1
parallax disk resize d 64M
io d 'read -P 3 0 1M' 'read -P 0 1M 63M'

# With a client attached.
/usr/bin/python3 - "$(uri d)" <<'END'
import subprocess
import sys

import nbd


def parallax(*words):
    return subprocess.run(["parallax", *words], capture_output=True, text=True,
                          check=False)


def expect_in_use(*words):
    result = parallax(*words)
    assert result.returncode == 1 and "client" in result.stderr, (words, result)


handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
expect_in_use("disk", "resize", "d", "32M")
expect_in_use("snapshot", "rollback", "d@full")
assert parallax("disk", "resize", "d", "96M").returncode == 0
handle.pwrite(b"grown", 0)
# It stays with the disk it opened, whatever that is called.
assert parallax("disk", "rename", "d", "e").returncode == 0
assert parallax("disk", "create", "d", "1M").returncode == 0
handle.pwrite(b"renamed", 0)
handle.flush()
END
has_size d 1
has_size e 96
io d 'read -P 0 0 1M'
[ "$(qemu-io -r -f raw -c 'read -v 0 16' "$(uri e)" | grep -c renamed)" -eq 1 ] ||
    fail "what was written under the old name is not under the new one"
parallax check
