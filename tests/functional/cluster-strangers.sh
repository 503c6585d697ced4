#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 240
#
# Strangers at the ports of a cluster of three: garbage, handshakes that never end,
# hundreds of connections that say nothing. A guest goes on, a host that comes back is let
# in, and no daemon grows.

. "$(dirname "$0")/lib.sh"
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

start_cluster 3 --capacity 1G
# shellcheck disable=SC2154 # start_cluster sets it
T=$T timeout 200 /usr/bin/python3 "$TESTS/cluster_strangers.py" "$lib_port" ||
    fail "see above"
