#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 240
#
# Three hosts, one after the other killed or stopped under load: one that only holds
# copies, the one that leads, the one that serves the disk. No request may fail but those
# of a host that is gone, nothing acknowledged may be lost, a former owner may not write,
# and all gets whole by itself. See judge.py for what is looked at.

. "$(dirname "$0")/lib.sh"
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

start_cluster "${HOSTS:-3}" --capacity 1G
T=$T timeout 200 /usr/bin/python3 "$TESTS/cluster_kill.py" "${HOSTS:-3}" ||
    fail "see above"
