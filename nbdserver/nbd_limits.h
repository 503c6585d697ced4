/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every bound of the NBD server, and how they hang together. What a client can make the
 * server hold, beyond the buffers of the host's pool:
 *
 *   per connection  NBD_REQUESTS_MAX requests and pieces (about 100 KiB), and at most
 *                   NBD_AREA_BYTES that came in but cannot be taken up yet;
 *   in handshake    NBD_OPTION_BYTES_MAX of an option and the answer to one.
 */
#ifndef PARALLAX_NBDSERVER_NBD_LIMITS_H
#define PARALLAX_NBDSERVER_NBD_LIMITS_H

#include "cow/disk.h"

/* --- connections --- */
#define NBD_CONNECTIONS_MAX      512U
#define NBD_CLIENTS_PER_DISK_MAX 32U
#define NBD_LISTENERS_MAX        16U
#define NBD_ACCEPTS_AT_ONCE      16U /* then the loop sees to the others */
#define NBD_LISTEN_BACKLOG       128
#define NBD_SOCKET_BUFFER_BYTES  (1024 * 1024)

/* --- handshake --- */
#define NBD_INCOMING             "?incoming" /* behind a disk's name */
#define NBD_EXPORT_NAME_MAX      (2 * DISK_NAME_MAX + 1) /* DISK@SNAP, DISK?incoming */
#define NBD_OPTION_BYTES_MAX     (16 * 1024U)
#define NBD_OPTION_SKIP_MAX      (256 * 1024U) /* longer options end the connection */
#define NBD_LIST_MAX             4096U         /* exports in one answer to LIST */
#define NBD_LISTS_MAX            8U            /* such answers in one handshake */
#define NBD_LISTS_AT_ONCE        4U /* not taken yet by their clients; 1.2 MB at most */
#define NBD_OPTIONS_MAX          (4 * NBD_LIST_MAX) /* some ask about each export */
#define NBD_CONTEXTS_MAX         8U   /* metadata contexts a connection may choose */
#define NBD_CONTEXTS_LISTED_MAX  1024U /* in one answer */
#define NBD_QUERIES_MAX          64U  /* in one option about contexts */

/* --- requests --- */
#define NBD_REQUEST_BYTES_MAX    (32 * MIB) /* of a read or write, advertised */
#define NBD_SKIP_BYTES_MAX       (64 * MIB) /* refused payload; more is the end */
#define NBD_REQUESTS_MAX         128U       /* unanswered, per connection */
#define NBD_PIECES_MAX           NBD_REQUESTS_MAX
#define NBD_PAYLOAD_BYTES_MAX    (8 * MIB) /* in buffers, per connection */
#define NBD_STATUS_MAX           4U        /* block status at work, per connection */
#define NBD_STATUS_RANGES_MAX    2048U     /* of all contexts together */
#define NBD_ERROR_TEXT_MAX       160U

/* --- the socket --- */
#define NBD_AREA_BYTES           (96 * KIB)  /* taken from a socket at once */
#define NBD_AREA_SMALL_BYTES     (4 * KIB)   /* when large payload is expected */
#define NBD_LARGE_PAYLOAD_BYTES  (32 * KIB)
#define NBD_IOV_MAX              128U
/* Of a connection, beside buffers of the pool: what was not taken up yet, the session,
 * its requests and pieces. */
#define NBD_CONNECTION_BYTES     (NBD_AREA_BYTES + 73 * KIB)

/* --- time --- */
#define NBD_TICK_MS              500U
#define NBD_HANDSHAKE_MS         10000U
#define NBD_STALL_MS             120000U /* a client that takes or gives nothing */
#define NBD_STALL_PRESSED_MS     2000U   /* the same while others lack buffers */
#define NBD_STOP_MS              3000U   /* for last answers when the server stops */

static_assert(NBD_CLIENTS_PER_DISK_MAX * NBD_PIECES_MAX <= DISK_IO_INFLIGHT_MAX,
              "the disk never refuses for a full queue");
static_assert(NBD_PAYLOAD_BYTES_MAX + DISK_IO_BYTES_MAX <= NBD_BUFFER_BYTES / 4,
              "one connection leaves most of the pool to others");
static_assert(NBD_REQUEST_BYTES_MAX <= NBD_SKIP_BYTES_MAX,
              "whatever length is allowed can be refused politely");
static_assert(NBD_OPTION_BYTES_MAX + 64 <= NBD_AREA_BYTES,
              "an option fits the area it is received in");
static_assert(NBD_EXPORT_NAME_MAX + 64 <= NBD_OPTION_BYTES_MAX, "a name fits an option");
static_assert(NBD_STATUS_RANGES_MAX / NBD_CONTEXTS_MAX >= 64,
              "each context has room for a few ranges");
static_assert(NBD_CONTEXTS_LISTED_MAX <= NBD_LIST_MAX,
              "as many lists at once are taken of contexts as of exports");
static_assert(NBD_LARGE_PAYLOAD_BYTES < NBD_AREA_BYTES, "small payload fits whole");

/* doc/limits.md. The cache needs 1/32 for its table. */
static_assert(NBD_BUFFER_BYTES + LOG_BUFFER_BYTES + NODE_CACHE_BYTES / 32 * 33 +
                      OVERLAY_BYTES_TOTAL + TASK_STACKS_MAX * TASK_STACK_BYTES +
                      NBD_CONNECTIONS_MAX * NBD_CONNECTION_BYTES + DAEMON_REST_BYTES <=
                  DAEMON_BYTES_MAX,
              "what a daemon holds adds up to what is promised");

#endif
