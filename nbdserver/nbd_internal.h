/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the NBD server share: a session, its requests, and their replies.
 *
 * A session is one client's half of the protocol without a socket: bytes in
 * (session_input), operations on a disk, bytes out (session_output). connection.c moves
 * the bytes, server.c accepts connections and keeps time; tests and fuzzers feed
 * sessions from memory.
 *
 *                 client flags          EXPORT_NAME, GO             opened
 *     HELLO ------------------> OPTIONS ----------------> OPENING ---------> SERVING
 *                                  ^                         | not opened       |
 *                                  +-------------------------+                  |
 *     any: DISC, ABORT, end of input, server stops --> DRAINING <---------------+
 *     any: broken protocol, broken socket, too slow --> BROKEN
 *     DRAINING, all answered and sent  }
 *     BROKEN, nothing left at the disk } --> ENDED: disk closed, owner told
 *
 * N1  at_work counts operations at the disk, block status tasks and an opening. A
 *     session does not end before it is 0.
 * N2  request_count counts requests from their header to the last byte of their reply.
 * N3  payload_bytes is the sum of the capacities of all buffers pieces hold.
 * N4  At most one request is `current`: its pieces are not all at the disk yet. No
 *     further header is taken up before.
 * N5  `receiving` is a piece of a current WRITE, and input goes there first.
 * N6  `blocked` says why input waits; whatever ends that reason posts resume_work.
 */
#ifndef PARALLAX_NBDSERVER_NBD_INTERNAL_H
#define PARALLAX_NBDSERVER_NBD_INTERNAL_H

#include <sys/uio.h>

#include "cow/disk.h"
#include "cow/host.h"
#include "nbdserver/nbd_format.h"
#include "nbdserver/nbd_limits.h"
#include "runtime/runtime.h"

struct session;
struct request;

/* --- what the sessions of a server have in common --- */

struct nbd_shared {
    struct loop *loop;
    struct host *host;
    struct buffer_pool *buffers;
    uint32_t buffer_waiters;
    uint32_t lists; /* sessions that are `listing` */
    uint64_t sessions_made;
    TAILQ_HEAD(session_list, session) sessions;
    struct metric *requests, *errors, *bytes_in, *bytes_out;
};
void nbd_shared_init(struct nbd_shared *shared, struct loop *loop, struct host *host);

/* --- replies --- */

enum reply_of { REPLY_OF_REQUEST, REPLY_OF_PIECE };

struct reply {
    enum reply_of of;
    uint8_t head_len;
    uint8_t head[sizeof(struct nbd_chunk_data)];
    const uint8_t *body;
    uint32_t body_len;
    STAILQ_ENTRY(reply) link; /* session->replies */
};
static_assert(sizeof(struct nbd_chunk_data) >= sizeof(struct nbd_chunk_error) &&
                  sizeof(struct nbd_chunk_data) >= sizeof(struct nbd_chunk_status),
              "head holds any of them");

/* --- requests --- */

/* One operation on the disk: a request, or as much of a long one as a buffer holds. */
struct piece {
    struct disk_io io;
    struct request *request;
    struct reply reply; /* a READ's data */
    SLIST_ENTRY(piece) link; /* session->idle_pieces */
};

struct command;

struct request {
    struct session *session;
    const struct command *command; /* NULL: unknown */
    uint8_t cookie[8];
    uint64_t offset_bytes;
    uint32_t len_bytes;
    uint16_t type, flags;
    uint32_t issued_bytes;  /* of a READ or WRITE: in pieces */
    uint32_t pieces;        /* that exist */
    uint32_t pending;       /* of these, at the disk; or a task */
    bool issuing;           /* not all is at the disk yet */
    bool reply_queued;      /* the one below */
    bool header_sent;       /* of a long simple READ: nothing can be taken back */
    int error;              /* 0, or the first that went wrong */
    const char *detail;     /* what the error is; NULL: err_text(error) */
    struct reply reply;
    uint8_t *status;        /* answer to BLOCK_STATUS, owned */
    struct task_call call;
    SLIST_ENTRY(request) link; /* session->idle_requests */
    char text[NBD_ERROR_TEXT_MAX];
};

struct command {
    const char *name;
    uint16_t flags;     /* those it may have */
    bool changes;       /* refused on a read-only disk */
    bool has_range;     /* offset and length must lie within the disk */
    int past_end;       /* what it is to reach beyond */
    uint64_t len_max;   /* bytes */
    enum disk_op op;    /* of issue_plain */
    /* Hands the request to the disk. False: could not go on, `blocked` says why; it is
     * called again. NULL: there is nothing to do. */
    bool (*issue)(struct request *request);
};

/* --- session --- */

enum session_phase {
    PHASE_HELLO,
    PHASE_OPTIONS,
    PHASE_OPENING,
    PHASE_SERVING,
    PHASE_DRAINING,
    PHASE_BROKEN,
    PHASE_ENDED,
};

enum session_blocked {
    BLOCKED_NOT,
    BLOCKED_ROOM,   /* too many requests or too much payload in flight */
    BLOCKED_BUFFER, /* the pool is empty */
    BLOCKED_OUTPUT, /* the answer to an option must go first */
    BLOCKED_OPENING,
};

/* What a client asked block status to tell of. */
struct context {
    bool is_changes; /* parallax:changed-since:base; else base:allocation */
    uint64_t version; /* of base, once the disk is open; 0: it is gone */
    char base[DISK_NAME_MAX + 1];
};

struct session_events {
    /* There is output. May call session_output, session_sent and session_break. */
    void (*output)(struct session *session);
    /* Call session_input again with what it left. */
    void (*resume)(struct session *session);
    /* The session is over and may be freed. */
    void (*ended)(struct session *session);
};

struct session {
    struct nbd_shared *shared;
    const struct session_events *events;
    uint64_t number; /* for log and trace */
    enum session_phase phase;
    enum session_blocked blocked;
    const char *broken_why;

    /* handshake */
    bool no_zeroes;
    bool structured;
    struct context contexts[NBD_CONTEXTS_MAX]; /* of context_export; id: index + 1 */
    uint32_t context_count;
    uint32_t option_count, list_count;
    bool listing;               /* a long answer is on its way */
    struct writer handshake_out;
    size_t handshake_sent;      /* bytes */
    char context_export[NBD_EXPORT_NAME_MAX + 1];
    char export[NBD_EXPORT_NAME_MAX + 1]; /* opening or open; "": none */
    uint32_t open_option;       /* EXPORT_NAME or GO */
    uint32_t open_infos;        /* bits of NBD_INFO_* asked for */
    struct task_call open_call;
    struct disk *disk;          /* NULL before SERVING */
    uint32_t opened;            /* disk_opened, then */

    /* requests */
    uint32_t request_count; /* N2 */
    uint32_t piece_count;
    uint32_t status_count;
    uint32_t at_work;       /* N1 */
    uint64_t payload_bytes; /* N3 */
    uint64_t skip_bytes;    /* of input that nobody wants */
    struct request *skipping;
    struct request *current; /* N4 */
    struct piece *receiving; /* N5 */
    uint8_t *receive_at;
    uint32_t receive_left;  /* bytes */
    uint64_t receive_since_ns;
    bool expects_large;     /* the last WRITE was */
    SLIST_HEAD(, request) idle_requests;
    SLIST_HEAD(, piece) idle_pieces;

    /* buffers */
    struct work buffer_waiter;
    uint64_t wanted_bytes;
    struct buffer *granted;

    /* output */
    STAILQ_HEAD(reply_list, reply) replies;
    uint32_t first_sent;      /* bytes of the first reply */
    uint64_t output_since_ns; /* since when the first byte waits; 0: nothing does */

    struct work output_work, resume_work, end_work;
    TAILQ_ENTRY(session) link; /* shared->sessions */
};

/* session.c. A session lies in its owner's memory; it begins with the server's hello. */
void session_init(struct session *s, struct nbd_shared *shared,
                  const struct session_events *events);
/* Takes up as much of bytes as it can; returns how much. The rest is given again, with
 * more behind it, or after `resume` if the session is blocked. */
size_t session_input(struct session *s, const uint8_t *bytes, size_t len);
bool session_wants_input(const struct session *s);
/* Where payload could be put without a copy: *ret_len bytes. False: nowhere. */
bool session_direct(const struct session *s, uint8_t **ret_at, size_t *ret_len);
/* len bytes were put there. */
void session_direct_done(struct session *s, size_t len);
/* The client sends no more; what it asked for is answered. */
void session_drain(struct session *s);
/* The connection is of no use any more. why: static, for the log. */
void session_break(struct session *s, const char *why);
/* Fills iov with what is to be sent. */
uint32_t session_output(const struct session *s, struct iovec *iov, uint32_t max);
void session_sent(struct session *s, size_t len);
/* For how long the client has owed payload or left replies untaken. */
uint64_t session_stalled_ns(const struct session *s);
/* Tries again where memory was out and nobody gave any back. */
void session_retry(struct session *s);

/* For the other files of the engine. */
bool session_is_live(const struct session *s); /* not BROKEN, not ENDED */
void session_block(struct session *s, enum session_blocked why);
void session_unblock(struct session *s, enum session_blocked why);
void session_kick(struct session *s); /* sends, or has it sent, what is queued */
void session_settle(struct session *s); /* ends it, if all is done */
void session_work_begin(struct session *s);
void session_work_end(struct session *s);

/* handshake.c, options.c */
void handshake_begin(struct session *s);
/* Each takes one message, or 0 bytes if it is not whole yet. */
size_t handshake_hello(struct session *s, const uint8_t *bytes, size_t len);
size_t handshake_option(struct session *s, const uint8_t *bytes, size_t len);
void option_reply(struct session *s, uint32_t option, uint32_t type, const void *data,
                  size_t len);
void option_error(struct session *s, uint32_t option, uint32_t type, const char *fmt, ...)
    attr_printf(4, 5);
void open_start(struct session *s, uint32_t option, const char *name, uint32_t infos);
uint16_t export_flags(const struct session *s, bool read_only);
void option_run(struct session *s, uint32_t option, const uint8_t *data, uint32_t len);
/* Longer names, and those with a NUL inside, are nobody's. */
bool option_read_name(struct reader *r, uint32_t len, char *ret);
/* The name of the disk or snapshot behind an export's; true: for one that comes in. ret
 * has room for NBD_EXPORT_NAME_MAX bytes and the NUL. */
bool export_split(const char *name, char *ret_disk);
/* One of few who are sent a long answer at a time; false: refused with an error. */
bool option_list_begin(struct session *s, uint32_t option);
/* The replies to INFO and GO. */
void option_infos(struct session *s, uint32_t option, const char *name,
                  uint64_t size_bytes, bool read_only, uint32_t infos);

/* contexts.c */
void contexts_run_option(struct session *s, uint32_t option, const uint8_t *data,
                         uint32_t len);
void contexts_opened(struct session *s); /* finds what they compare with */

/* request.c */
size_t request_header(struct session *s, const uint8_t *bytes, size_t len);
bool request_go_on(struct session *s); /* false: blocked */
void request_received(struct session *s); /* the piece that is received is whole */
void request_skipped(struct session *s);
void request_drop_current(struct session *s);
void request_release(struct request *request); /* if nothing of it is left */
void piece_free(struct piece *piece);
void request_work_done(struct request *request); /* a piece or task of it is done */
void session_free_idle(struct session *s);

/* reply.c */
enum nbd_error nbd_error_of(int code);
void request_fail(struct request *request, int error, const char *detail);
void reply_data(struct piece *piece, bool is_last);
/* Adds one context's answer to `out`. */
void reply_status_add(const struct request *request, struct writer *out, uint32_t context,
                      const struct nbd_status_range *ranges, uint32_t count,
                      bool is_last);
void reply_status(struct request *request, struct writer *out); /* takes it over */
void reply_result(struct request *request);
void reply_sent(struct session *s, struct reply *reply);

/* status.c */
bool status_issue(struct request *request);

#endif
