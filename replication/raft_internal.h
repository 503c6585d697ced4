/* SPDX-License-Identifier: Apache-2.0 */
/* What the files raft_*.c share: the only ones that know libraft. */
#ifndef PARALLAX_REPLICATION_RAFT_INTERNAL_H
#define PARALLAX_REPLICATION_RAFT_INTERNAL_H

#include <raft.h>

#include "replication/consensus.h"

#define RAFT_TICK_MS      25U
#define RAFT_HEARTBEAT_MS 75U
#define RAFT_ELECTION_MS  400U /* to twice that, by chance */

static_assert(RAFT_HEARTBEAT_MS >= 2 * RAFT_TICK_MS, "a heartbeat is not a tick late");
static_assert(RAFT_ELECTION_MS >= 5 * RAFT_HEARTBEAT_MS, "a few heartbeats may be lost");

/* Numbers beyond this are refused, so that sums of them do not overflow. */
#define RAFT_NUMBER_MAX ((uint64_t)1 << 62)

/* Entries of one message. */
#define RAFT_APPEND_COUNT 16384U

/* --- raft_message.c: what goes over the link and into the store --- */

/* Members; count 0: none are known. Owned. */
struct member_list {
    uint32_t count;
    struct consensus_member *members;
};
void members_done(struct member_list *list);
void members_copy(const struct member_list *from, struct member_list *ret);
const struct consensus_member *members_find(const struct member_list *list,
                                            uint64_t node);
uint32_t members_voters(const struct member_list *list);
void members_write(struct writer *w, const struct member_list *list);
/* Foreign bytes: marks the reader bad, and leaves ret empty. */
void members_read(struct reader *r, struct member_list *ret);
/* From and to libraft's own. False: these are not bytes of libraft. */
bool members_of_raft_bytes(const struct raft_buffer *buf, struct member_list *ret);
void members_of_raft(const struct raft_configuration *conf, struct member_list *ret);
void members_to_raft(const struct member_list *list, struct raft_configuration *ret);

/* An entry without its term: what stands in the store and in messages. */
void entry_write(struct writer *w, const struct raft_entry *entry);
/* Reads one, with its own raft_malloc'd bytes (batch NULL). False: malformed. */
bool entry_read(struct reader *r, struct raft_entry *ret);

/* Who submitted a command; stands before it. */
struct origin {
    uint64_t node, process, id; /* process: random, one for each opening */
};
#define COMMAND_HEAD_BYTES 25U
void command_write(struct writer *w, struct origin origin, const void *bytes, size_t len);
bool command_read(struct reader *r, struct origin *ret_origin); /* leaves the command */

enum message_kind {
    MESSAGE_APPEND = 1,
    MESSAGE_APPEND_RESULT,
    MESSAGE_VOTE,
    MESSAGE_VOTE_RESULT,
    MESSAGE_SNAPSHOT,
    MESSAGE_TIMEOUT_NOW,
    MESSAGE_SUBMIT, /* from here on our own */
    MESSAGE_SUBMIT_ANSWER,
    MESSAGE_BARRIER,
    MESSAGE_BARRIER_ANSWER,
    MESSAGE_KINDS,
};

/* Of what is forwarded to the leader, and its answer. */
struct forward {
    uint64_t process, id;
    bool accepted;
    uint64_t index; /* where it stands in the log, if accepted */
    const uint8_t *bytes; /* the command; in the message */
    size_t len;
};

/* A message as decoded. */
struct message {
    enum message_kind kind;
    struct raft_message raft; /* up to MESSAGE_TIMEOUT_NOW; what it points to is owned */
    struct forward forward;   /* the others */
};
/* append_bytes: at most about so many bytes of entries go into one message. */
void message_encode(const struct raft_message *message, uint32_t append_bytes,
                    struct writer *w);
void message_encode_forward(enum message_kind kind, const struct forward *forward,
                            struct writer *w);
/* Foreign bytes. False: malformed, and nothing is owned. */
bool message_decode(const void *bytes, size_t len, struct message *ret);
/* Frees what a message owns that was not given to libraft. */
void message_done(struct message *message);

/* --- raft_store.c: the log, votes and snapshots in the key-value store --- */

struct log_slot {
    uint64_t term;
    uint32_t bytes;
};

struct config_at {
    uint64_t index;
    struct member_list members;
};

struct snapshot_meta {
    uint64_t index, term; /* of the last command in it; 0: there is no snapshot */
    uint64_t config_index;
    struct member_list members;
    uint64_t generation; /* names its pieces */
    uint64_t len;
    uint32_t pieces, crc;
};

struct raft_store {
    struct kv *kv;
    uint64_t node;
    uint64_t term, vote;
    uint64_t first, next; /* the log is [first, next) */
    struct log_slot *slots;
    size_t slots_front, slots_cap; /* of slot `first`; slots lie contiguous */
    uint64_t log_bytes;
    struct config_at *configs; /* in the order of index; the oldest is the one in force at
                                * the snapshot, if there is one */
    uint32_t config_count, config_cap;
    struct snapshot_meta snapshot;
};

/* Reads everything but the snapshot's bytes. The entries are for libraft. */
async int raft_store_load(struct raft_store *store, struct kv *kv, uint64_t node,
                          struct raft_entry **ret_entries, size_t *ret_count,
                          struct error *err);
void raft_store_done(struct raft_store *store);
/* `also`, or NULL: goes into the same write, and is taken over. */
async int raft_store_bootstrap(struct kv *kv, uint64_t node, struct kv_batch *also,
                               struct error *err);
async int raft_store_bootstrap_from(struct kv *kv, uint64_t node, uint64_t index,
                                    const struct raft_buffer *state,
                                    struct kv_batch *also, struct error *err);

uint64_t raft_store_term_of(const struct raft_store *store, uint64_t index); /* 0: none */
const struct config_at *raft_store_config(const struct raft_store *store);

/* All of these wait until it is durable. */
async int raft_store_set_vote(struct raft_store *store, uint64_t term, uint64_t vote);
async int raft_store_append(struct raft_store *store, const struct raft_entry *entries,
                            unsigned count);
async int raft_store_truncate(struct raft_store *store, uint64_t index);

/* A new snapshot: its pieces, then the switch to it. The log keeps what is after
 * keep_after; a snapshot from elsewhere replaces the log. */
async int raft_store_write_pieces(struct raft_store *store,
                                  const struct raft_buffer *bufs, unsigned count,
                                  uint32_t piece_bytes, struct snapshot_meta *meta);
async int raft_store_switch(struct raft_store *store, struct snapshot_meta *meta,
                            bool is_foreign, uint64_t keep_after);
/* The bytes of the snapshot; raft_malloc'd. */
async int raft_store_read_snapshot(struct raft_store *store, struct raft_buffer *ret,
                                   struct error *err);

/* --- what waits --- */

enum waiting_state {
    WAITING_QUEUED, /* for a leader, or to become one of a batch */
    WAITING_SENT,   /* to the leader; no answer yet */
    WAITING_INDEX,  /* until that index has been applied here */
};

/* A submit or a barrier of this node, on the stack of its task; or one from another
 * node, on the heap, until the leader has it in its log. */
struct waiting {
    uint64_t id;
    uint64_t from_node, process; /* from_node 0: of this node */
    bool is_barrier;
    enum waiting_state state;
    bool was_sent; /* to another node: copies of it may be anywhere */
    uint64_t sent_to, sent_term, index;
    uint64_t deadline_ns, not_before_ns;
    struct raft_buffer command; /* raft_malloc'd, with its head; until it is in the log */
    size_t bytes;               /* of a forwarded one: counted in waiting_bytes */
    struct writer *answer;
    int code;
    struct event settled;
    TAILQ_ENTRY(waiting) link;
};
TAILQ_HEAD(waitings, waiting);

struct inbox_message {
    uint64_t from_node;
    uint8_t *bytes;
    size_t len;
    STAILQ_ENTRY(inbox_message) link;
};

/* Something that libraft wants done; done before anything else enters it. */
enum io_kind { IO_SEND, IO_APPEND, IO_INSTALL, IO_GET };
struct io_request {
    enum io_kind kind;
    void *request; /* libraft's */
    const struct raft_entry *entries;
    unsigned count;
    const struct raft_snapshot *snapshot;
    union {
        raft_io_send_cb sent;
        raft_io_append_cb appended;
        raft_io_snapshot_put_cb put;
        raft_io_snapshot_get_cb got;
    };
    STAILQ_ENTRY(io_request) link;
};

/* A change of membership or leadership, on the stack of its task. */
enum control_kind { CONTROL_ADD, CONTROL_ROLE, CONTROL_REMOVE, CONTROL_TRANSFER };
struct control {
    enum control_kind kind;
    uint64_t node;
    int role;
    int code;
    bool is_begun;
    uint64_t deadline_ns; /* of a transfer that has begun */
    struct event settled;
    TAILQ_ENTRY(control) link;
};

/* This node's own snapshot on its way to the store. */
enum own_snapshot { OWN_NONE, OWN_WRITING, OWN_WRITTEN };

struct consensus {
    struct consensus_options options;
    struct loop *loop;

    struct raft raft;
    struct raft_io io;
    struct raft_fsm fsm;
    struct raft_tracer tracer; /* says nothing */
    raft_io_tick_cb tick;
    raft_io_recv_cb recv;
    bool is_inside; /* libraft is running: exactly one task, this once */
    bool is_set_up; /* `raft` has something that must be closed */

    struct raft_store store;
    struct raft_entry *loaded; /* for io.load */
    size_t loaded_count;

    uint64_t applied;    /* by the machine */
    uint64_t decoded_to; /* as far as snapshots have replaced commands */
    uint64_t led_term;   /* the newest one this node led, its first entry submitted */
    uint64_t ready_term; /* that entry is committed: membership may change */
    uint64_t process, next_id;

    /* The message libraft is answering: what it may confirm. */
    uint64_t confirm_to;
    bool needs_reload;

    STAILQ_HEAD(, io_request) io_requests;
    STAILQ_HEAD(, inbox_message) inbox;
    uint64_t inbox_bytes;
    uint32_t inbox_count;
    struct waitings waitings;
    uint32_t waiting_count;
    uint64_t waiting_bytes;
    TAILQ_HEAD(, control) controls;
    struct control *changing, *transferring;
    struct raft_change change;
    struct raft_transfer transfer;

    enum own_snapshot own_state;
    struct task_call own_call;
    struct raft_io_snapshot_put *own_put;
    raft_io_snapshot_put_cb own_done;
    const struct raft_snapshot *own_snapshot;
    unsigned own_trailing;
    struct snapshot_meta own_meta;

    struct task_call call;
    struct timer ticker;
    uint32_t tick_waits;
    uint64_t told_commit; /* as leader: followers were sent this index, or more */
    bool tick_due, look_due, closing, failed;
    struct error error; /* why it did not open, or failed */
    struct event opened, over;
    struct waitlist work, own_over, idle;
    uint32_t users; /* tasks inside */
    struct metric *applies, *appends, *elections;
};

/* --- raft_consensus.c --- */

void consensus_wake(struct consensus *c);
/* Ends it; libraft is never entered again. */
void consensus_fail(struct consensus *c, int code, const char *fmt, ...)
    attr_printf(3, 4);
void consensus_fail_with(struct consensus *c, const struct error *err);
/* Does what libraft asked for; after every entry into it. */
async void consensus_settle(struct consensus *c);
bool consensus_is_only_voter(const struct consensus *c);
/* The address that libraft wants of each node. */
#define RAFT_ADDRESS_MAX 24U
void consensus_address(uint64_t node, char ret[RAFT_ADDRESS_MAX]);
void consensus_send(struct consensus *c, uint64_t node, const struct writer *w);
void consensus_enter(struct consensus *c);
void consensus_leave(struct consensus *c);

/* --- raft_io.c --- */

void raft_io_setup(struct consensus *c);
async void raft_io_run(struct consensus *c, struct io_request *request);
/* After a failure: has libraft let go of everything it waits for. */
void raft_io_let_go(struct consensus *c);
/* This node's snapshot, whose pieces are written, becomes the one in force. */
async void raft_io_finish_own(struct consensus *c);

/* --- raft_guard.c --- */

enum verdict { VERDICT_TAKE, VERDICT_DROP, VERDICT_RELOAD };
/* What to do with a message before libraft sees it; may cut it to what libraft can take.
 * VERDICT_RELOAD: the log must first be cut before *ret_index, and libraft started
 * again. */
enum verdict raft_guard(struct consensus *c, struct message *message,
                        uint64_t *ret_index);

/* --- raft_submit.c --- */

/* Has what waits go into the log or to the leader. */
async void submit_run(struct consensus *c);
void submit_forwarded(struct consensus *c, uint64_t from, const struct message *message);
/* A command was applied: wakes the one who waits for it. */
void submit_applied(struct consensus *c, const struct origin *origin,
                    struct writer *answer);
/* After `applied` has moved, or time has passed. */
void submit_look(struct consensus *c);
void submit_end_all(struct consensus *c, int code);

/* --- raft_member.c --- */

async void control_run(struct consensus *c);
/* libraft's transfer must not outlive the leadership: it would vote twice for it. */
void control_drop_transfer(struct consensus *c);
void control_end_all(struct consensus *c, int code);

#endif
