#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 150
# builds: release
#
# Situations that have cost users of other stores their data or their time, with three
# hosts; see cluster_situations.py, and doc/testing.md for those that other tests have.
# STORIES names some of them.

. "$(dirname "$0")/lib.sh"
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

start_cluster 3 --capacity 384M
[ -z "${STORIES-}" ] || read -r -a stories <<<"$STORIES"
T=$T timeout 120 /usr/bin/python3 "$TESTS/cluster_situations.py" "${stories[@]}" ||
    fail "see above"
