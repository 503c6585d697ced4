#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 120
#
# 1,000 clones with one command; 75 of them are served and written at once. Each has
# exactly its own content, then and after a restart.

. "$(dirname "$0")/lib.sh"
requires jq
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

start_up "$T/store" --capacity 8G
parallax disk create gold 32M
/usr/bin/python3 "$TESTS/many-clones.py" "$PARALLAX" gold
parallax snapshot create gold@base
parallax clone gold@base lab --count 1000

count=$(parallax disk ls --json | jq '[.[] | select(.parent == "gold@base")] | length')
[ "$count" -eq 1000 ] || fail "$count disks have the parent gold@base"

/usr/bin/python3 "$TESTS/many-clones.py" "$PARALLAX" write
/usr/bin/python3 "$TESTS/many-clones.py" "$PARALLAX" compare

# All of them, or none: the name of the last one is taken.
parallax disk create other-200 1M
expect_error "other-200" parallax clone gold@base other --count 200
parallax disk ls --json | jq -e '[.[] | select(.name | startswith("other-"))] |
    length == 1' >/dev/null || fail "half of a refused command was done"

stop_daemon "$PARALLAX"
start_up "$T/store"
/usr/bin/python3 "$TESTS/many-clones.py" "$PARALLAX" compare
parallax check
