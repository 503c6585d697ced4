/* SPDX-License-Identifier: Apache-2.0 */
/* What both ends of a control connection agree on; doc/control.md has the rest. */
#ifndef PARALLAX_TOOLS_CONTROL_WIRE_H
#define PARALLAX_TOOLS_CONTROL_WIRE_H

#include "runtime/base.h"
#include "runtime/limits.h"

/* A request or one line of a reply, with its newline. */
#define CONTROL_LINE_BYTES (64 * KIB)
/* Objects and arrays inside each other. A task's stack has no room for the thousands that
 * the JSON library takes, and frees in as many calls inside each other. */
#define CONTROL_DEPTH_MAX 8U
/* Nobody connects with more commands than this at once. */
#define CONTROL_CONNECTIONS_MAX 64U
/* Replies that wait for their reader; a handler with more to say waits. */
#define CONTROL_OUT_BYTES (256 * KIB)
/* A connection without a request, or whose peer does not read, ends after this. One that
 * has begun an import may be silent for as long as the import takes. */
#define CONTROL_IDLE_MS 60000U
/* How long a disk's last NBD client may take to be gone when an import ends. */
#define CONTROL_BUSY_MS 10000U
/* Nodes that are down which `status` names; it is one line. */
#define CONTROL_DOWN_NAMED_MAX 150U
/* Clones made by one request. */
#define CONTROL_CLONES_MAX 100000U
/* Snapshots removed in one step of a request for many. */
#define CONTROL_REMOVES_AT_ONCE 1000U

static_assert(CONTROL_OUT_BYTES >= 2 * CONTROL_LINE_BYTES, "a line always finds room");
static_assert(CONTROL_DOWN_NAMED_MAX * (2 * (uint64_t)DISK_NAME_MAX + 64) + 8192 <
                  CONTROL_LINE_BYTES,
              "a line has room for the nodes that are down");
static_assert(8 * (uint64_t)DISK_NAME_MAX * 6 + 4096 < CONTROL_LINE_BYTES,
              "a line has room for several names, each byte escaped");

#define CONTROL_SOCKET_NAME "control.sock"
/* Where the files of a block device's daemon are, in a folder named like the device. */
#define DEVICE_FOLDERS "/var/lib/parallax"

#endif
