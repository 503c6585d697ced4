#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 240
#
# Three hosts that go away one after the other, all at once, or but for one, and come back
# in another order: whoever knows too little refuses and says why, what was flushed is
# there when enough are back, and all gets whole by itself.

. "$(dirname "$0")/lib.sh"
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

start_cluster 3 --capacity 1G
T=$T timeout 200 /usr/bin/python3 "$TESTS/cluster_outage.py" || fail "see above"
