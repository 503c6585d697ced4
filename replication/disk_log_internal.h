/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the log share. doc/protocol.md has the rules and their reasons.
 *
 * A batch (who moves it):
 *
 *   queued --seal--> INFLIGHT --all members have it, in order--> COMMITTED -sync-> gone
 *           writer    |  ^              writer                       |      flush
 *                     |  |                                           |
 *         forced roll |  | writer: submitted again, next extent      | forced roll
 *                     v  |                                           |
 *                    MOVING <----------------------------------------+
 *
 * An extent of the tail (who moves it):
 *
 *   FOUND: by a take-over, which decides it; nothing else touches it.
 *
 *   OPENING --created--> AHEAD --its turn--> CURRENT --full--> ENDED -all flushed-+
 *      |     opener        |      roll          |     roll       |       flush     |
 *      | failed            | close              | forced roll,   | forced roll     |
 *      |                   |                    | close          |                 |
 *      +-------------------+--------------------+----------------+-----------------+
 *                                               |
 *        +--------------------------------------+
 *        v
 *     DECIDED -command committed-> COMMITTED --members have it--> FINAL --leaves--> LEFT
 *     (a length)     finals                        janitor                 finals     |
 *                                                       gone <--headers are trimmed---+
 *                                                                       janitor
 *
 * Everything happens in log_advance: an event (a record, an answer, a timer) notes what
 * is new and calls it or posts it; it looks at all that is known and goes on until
 * nothing can move.
 *
 * L1  flushed <= placed, flushed <= committed <= sealed. `placed` is the last batch that
 *     lies in order on all members where it is now; after a forced roll it falls back to
 *     flushed, while committed never falls.
 * L2  The lists `committed`, `inflight`, `moving`, in this order, hold exactly the
 *     batches flushed + 1 to sealed, in order of number.
 * L3  A batch in `committed` has the acknowledgement of every member of its extent, and
 *     so has its extent's roll record.
 * L4  Only the current extent takes appends; a batch lies wholly in one extent.
 * L5  flushed_length <= placed_end <= end <= EXTENT_BLOCKS, of every extent.
 * L6  A decided length is a flushed length and does not change.
 * L7  retained_bytes is the sum of the bytes of the batches in the three lists.
 * L8  At most one round of syncs is under way; what it covers is not above `placed`.
 * L9  A record is told once and last: committed with `last`, or failed. Never from inside
 *     log_append or log_flush.
 * L10 A batch is resubmitted or freed only when no member owes an answer for it, and its
 *     header is rewritten only when nobody else has it. If that is not so a copy of the
 *     batch, or of its header, goes on, and the old one is left behind (`orphans`).
 * L12 The headers of an extent are trimmed only after it left the cluster's list: until
 *     then a take-over may walk them.
 * L11 An extent leaves the cluster's list only after all its members have made it final
 *     that log_member_counts, so no crash can leave a copy whose final length nobody
 *     knows: recovery gives it to the others.
 */
#ifndef PARALLAX_REPLICATION_DISK_LOG_INTERNAL_H
#define PARALLAX_REPLICATION_DISK_LOG_INTERNAL_H

#include "replication/disk_log.h"
#include "replication/replica.h"

/* In flight while little is queued, so that batches grow. */
#define BATCHES_INFLIGHT_SMALL 2U
/* Forced rolls without a flush between them; then a log that has nowhere else to go
 * gives up. */
#define FRUITLESS_ROLLS_MAX    8U
#define ROLL_BACKOFF_NS        (10 * NS_PER_MS)
#define RETRY_NS               (100 * NS_PER_MS)
/* Looks for slow members, while any owes an answer; else for what changed. */
#define TICK_NS                (100 * NS_PER_MS)
#define IDLE_TICK_NS           NS_PER_S
/* Whether another write set would be better. */
#define RENEW_EVERY_NS         (2 * NS_PER_S)
/* A member that could not be told that an extent is final is told again. */
#define JANITOR_RETRY_NS       NS_PER_S
/* For members that have what a take-over must read, and do not answer. */
#define ASK_AGAIN_LIMIT_NS     (30 * NS_PER_S)
#define ASK_AGAIN_NS           (200 * NS_PER_MS)
/* A close that does not get on any more. */
#define CLOSE_LIMIT_NS         (30 * NS_PER_S)
#define CLOSE_FINALIZE_NS      (5 * NS_PER_S)
/* For an extent while there is no space: each try is a command. */
#define FULL_RETRY_NS          NS_PER_S
#define FULL_REST_NS           (200 * NS_PER_MS) /* between two tries for guests */
/* For an extent while the list is full: a checkpoint makes room, but if none can be
 * written (its map is damaged) nothing ever will. */
#define LIST_FULL_TRIES        300U

enum tail_phase {
    TAIL_FOUND,
    TAIL_OPENING,
    TAIL_AHEAD,
    TAIL_CURRENT,
    TAIL_ENDED,
    TAIL_DECIDED,
    TAIL_COMMITTED,
    TAIL_FINAL,
    TAIL_LEFT,
};

/* Two may have a command with final lengths under way at the same time. */
enum proposer { PROPOSER_OPENER, PROPOSER_CALLER, PROPOSER_COUNT, PROPOSER_NONE };

struct tail_extent;
struct batch;

/* A member that failed gets no new extents for a while, and for longer if it was so
 * again and again. One that could not be reached gets some as soon as there has been a
 * new connection to it for a shorter while: what was wrong with it is over. */
#define AVOID_NS           (10 * NS_PER_S)
#define AVOID_MAX_NS       (160 * NS_PER_S)
#define AVOID_HEARD_NS     (3 * NS_PER_S)
#define AVOID_HEARD_MAX_NS (48 * NS_PER_S)
struct avoided {
    uint64_t node; /* 0: nobody */
    uint64_t failed_ns, until_ns;
    uint64_t time_ns, heard_ns; /* how long: at most, and with a new connection */
    bool is_silent;             /* it could not be reached */
    bool is_starting;           /* it could, but does not serve yet */
    bool is_full;               /* that was all */
};

/* Tells one member which extents are final. It may outlive the log, in a call to a member
 * that is silent. */
struct janitor {
    struct task_call call;
    struct disk_log *log; /* NULL: it is gone */
    struct replica *member;
    bool runs;
    uint64_t retry_ns;    /* not before */
    LIST_ENTRY(janitor) link;
};
LIST_HEAD(janitor_list, janitor);

/* An extent being created on all its members at once; may outlive the log, too. */
struct creation;
LIST_HEAD(creation_list, creation);

/* Why there is no new extent. */
struct stall {
    int code;          /* 0: nothing is wrong */
    uint64_t since_ns;
    char text[LOG_TEXT_MAX];
};

struct batch_op {
    struct replica_append append;
    struct batch *batch;
};

struct roll_op {
    struct replica_append append;
    struct tail_extent *tail;
};

struct sync_op {
    struct replica_sync sync;
    struct tail_extent *tail;
    uint64_t round;
};

/* An extent of the disk that the cluster lists (or is just about to). */
struct tail_extent {
    struct disk_log *log;
    struct address extent;
    uint64_t epoch, nonce;
    uint64_t group_epoch;    /* under which it was opened */
    enum tail_phase phase;
    uint32_t member_count;
    struct replica *members[REPLICAS_MAX];
    uint64_t begun_ns;       /* when it became the current one */
    bool is_reserve;         /* made of the stores': for what must find room */

    uint32_t end;            /* blocks submitted */
    uint32_t placed_end;     /* blocks of batches in `committed` or flushed */
    uint64_t placed_number;
    uint64_t first_number;   /* of the batches written to it; 0: none yet */
    uint32_t flushed_length;
    uint64_t flushed_number;
    uint32_t cover_length;   /* flushed_length after the round under way */
    uint64_t cover_number;
    uint32_t last_crc;       /* of the header submitted last */

    struct buffer *roll_header;
    struct slice roll_slice;
    uint32_t roll_acks;
    unsigned roll_answers;   /* who has answered, by the bits of their indexes */
    int roll_result;
    uint32_t ops;            /* answers that members owe for it */
    struct roll_op roll_ops[REPLICAS_MAX];
    struct sync_op sync_ops[REPLICAS_MAX];
    unsigned sync_owed;      /* by whom, by bits */

    uint32_t length;         /* from DECIDED on */
    uint64_t last_number;
    uint64_t needs_flushed;  /* its length may be committed when this is flushed */
    enum proposer proposer;
    bool leaving;            /* the command under way takes it off the list */
    bool is_hurried;         /* its length is wanted soon: somebody waits for it */
    unsigned made_final;     /* members that have, by the bits of their indexes */
    unsigned trimmed;        /* members that let its headers go */
    unsigned missed;         /* that do not count, and could not be told */
    uint32_t tellers;        /* janitors that are at it */
    bool finalize_failed;    /* tried again when something changes */
    TAILQ_ENTRY(tail_extent) link;
};
TAILQ_HEAD(tail_list, tail_extent);

/* The record a piece came from; NULL once it has been told. */
struct piece_owner {
    struct log_record *record;
    bool last;
};

struct batch {
    struct disk_log *log;
    uint64_t number;
    uint32_t generation;
    uint64_t checkpoint;
    bool use_reserve;
    uint32_t blocks;         /* without the header */
    uint32_t entry_count;
    uint64_t bytes;          /* what it counts as while it is retained */
    struct tail_extent *tail;
    uint32_t block;          /* where its header is in there */
    uint32_t previous_crc;
    /* Where its header was when the disk was told last; null: not told yet. */
    struct address home;
    bool is_again;           /* submitted again after a forced roll */
    uint32_t acks, owed;     /* of the members; answers still to come */
    unsigned answers;        /* who has answered, by the bits of their indexes */
    int result;              /* the first that was not 0 */
    uint64_t sent_ns;
    struct batch_op ops[REPLICAS_MAX];
    unsigned class;
    uint32_t piece_count, slice_count, crc_count;
    struct log_piece *pieces;
    struct piece_owner *owners;
    struct slice *slices;    /* the header first */
    uint32_t *crcs;
    TAILQ_ENTRY(batch) link;
};
TAILQ_HEAD(batch_list, batch);
STAILQ_HEAD(record_list, log_record);
STAILQ_HEAD(flush_list, log_flush);

#define BATCH_CLASSES  3U
#define BATCH_IDLE_MAX 16U /* kept for reuse, of each class */

/* What replay has to walk: numbers first to last are in this extent. */
struct replay_range {
    struct address extent;
    struct replica *members[REPLICAS_MAX]; /* that have these numbers */
    uint32_t member_count;
    uint64_t first, last;
    bool is_final;           /* before the take-over: what the checkpoint covers in it may
                              * be named by roots */
};

struct disk_log {
    struct loop *loop;
    struct cluster *cluster;
    struct log_callbacks *callbacks;
    struct log_budget *budget;
    struct buffer_pool *buffers;
    uint64_t node, disk, epoch;
    struct uid uid;
    void (*sealed_fn)(void *arg, uint64_t disk, const struct log_piece *pieces,
                      uint32_t count, uint64_t number);
    void *sealed_arg;
    struct replica_directory *directory;
    struct replica_directory alone; /* the one of a log that has but the local store */
    struct replica *local;          /* its member, owned */
    struct avoided avoided[REPLICAS_MAX]; /* members that failed lately, latest first */
    uint64_t append_limit_ns, sync_limit_ns;
    const bool *is_ending; /* NULL: never */

    bool is_closing;         /* takes no more records */
    int down;                /* why it gave up; 0: it has not */
    bool down_told;

    uint64_t sealed, committed, placed, flushed; /* batch numbers; L1 */
    struct record_list queued;
    uint64_t queued_blocks;
    struct batch_list committed_list, inflight, moving; /* L2 */
    struct batch_list orphans; /* given up, members still owe answers */
    bool has_given_up;       /* something that is to be cancelled */
    uint32_t inflight_count;
    uint64_t retained_bytes, unsynced_bytes, appended_bytes;
    uint32_t owed;           /* answers that members owe, in all */

    struct tail_list tails;  /* in order of sequence */
    uint32_t tail_count, ahead_count; /* ahead: those of no reserve */
    struct tail_extent *current;
    uint32_t slabs_hint;
    bool wants_extent;       /* something waits for one */
    bool is_full;            /* the last one could not be made: no space; */
    bool is_exhausted;       /* nor one of the reserve; */
    bool was_wanted;         /* and something waited for it */
    uint64_t rests_until_ns; /* what may be refused waits for the next try */
    bool wants_reserve;      /* the opener makes one of that now */
    uint32_t fruitless_rolls;
    struct task_call opener_call;
    bool opener_runs;
    bool opener_submits;     /* a command of which it will hear */
    struct creation_list creations;
    struct janitor_list janitors;
    bool wants_cleaning;     /* there may be something for the janitors */
    struct stall stall;
    uint64_t renewed_ns;     /* when it was looked for better write sets */
    bool renews;             /* the current extent is to end when there is another */
    bool is_unsure;          /* a command of the opener may have been carried out */
    uint64_t applied_seen;   /* of the cluster state */
    bool is_watching;        /* the lease is to stay as it is */
    struct cluster_watcher watcher;
    struct final_length finals[PROPOSER_COUNT][LOG_EXTENTS_MAX];
    bool caller_proposes;

    struct flush_list flushes;
    uint64_t round;          /* of syncs */
    uint32_t round_owed;
    uint64_t round_begun_ns;
    uint64_t round_cover;    /* batch number */
    bool sync_due, is_starved;
    struct timer sync_timer, retry_timer, tick_timer;
    bool ticks_fast;

    bool advancing, again;
    struct work work;        /* calls log_advance */
    struct work buffer_waiter;
    struct waitlist changed; /* woken after every log_advance */

    SLIST_HEAD(, idle_batch) idle[BATCH_CLASSES];
    uint32_t idle_count[BATCH_CLASSES];
    struct entry entries[BATCH_BLOCKS]; /* scratch for one header */
    struct replay_range *ranges;
    uint32_t range_count;
    uint64_t covers, replay_last;
};

struct idle_batch {
    SLIST_ENTRY(idle_batch) link;
};

/* --- log_writer.c --- */

/* Does all that can be done now. May call back into the disk. */
void log_advance(struct disk_log *log);
/* The same, soon. */
void log_kick(struct disk_log *log);
/* Sees to it that the log is looked at again, also if nothing happens. */
void log_tick(struct disk_log *log);
/* Gives up: every record and flush fails with code, then `down`. */
void log_go_down(struct disk_log *log, int code);
/* Calls log_advance again when the pool has room. */
void log_wait_buffer(struct disk_log *log);
/* Off its list, which the caller did; gives back what it holds. */
void batch_release(struct batch *batch);

/* --- log_batch.c --- */

/* Data blocks of it that are in no batch yet. */
uint64_t log_blocks_left(const struct log_record *record);
/* Takes records off the queue into a new batch with the next number; NULL if there is no
 * memory for it now (then log_wait_buffer or a timer goes on). *ret_blocks of peek: data
 * blocks the next batch will have. */
uint32_t batch_peek(const struct disk_log *log);
struct batch *batch_seal(struct disk_log *log);
/* A batch as a take-over found it, header and data side by side in `buffer`; its number
 * is the next one. It is sent like one that a forced roll moves. False: no memory. */
bool batch_restore(struct disk_log *log, const struct header *head,
                   struct buffer *buffer, uint32_t blocks);
/* At the current extent's end: addresses and header. */
void batch_place(struct batch *batch);
/* Before it is placed again, elsewhere: the same batch, or a copy in its place in
 * `moving`; L10. NULL: no memory (then log_wait_buffer or a timer goes on). */
struct batch *batch_renew(struct batch *batch);
/* Gives up what members have not answered. May call append_done. */
void batch_cancel(struct batch *batch);
void batch_submit(struct batch *batch);
/* Nobody has anything of the batches from `from` on; they go back. */
void batch_withdraw(struct disk_log *log, struct batch *from);
void batch_free(struct batch *batch);
void batch_idle_free(struct disk_log *log);

/* --- log_flush.c --- */

void log_sync_if_wanted(struct disk_log *log);
/* The answers of the round under way no longer matter. */
void log_round_void(struct disk_log *log);
void log_flushes_finish(struct disk_log *log);
void log_flushes_fail(struct disk_log *log, int code);
/* Gives up syncs that members have not answered. */
void log_cancel_syncs(struct tail_extent *tail);

/* --- log_roll.c --- */

struct tail_extent *tail_create(struct disk_log *log, struct address extent,
                                uint64_t epoch);
void tail_destroy(struct tail_extent *tail);
/* Makes sure that the current extent has room for a batch of so many data blocks, by a
 * planned roll if need be. use_reserve: it must find room. False: not now. */
bool log_room_for(struct disk_log *log, uint32_t blocks, bool use_reserve);
void log_roll_forced(struct disk_log *log, int cause);
/* What comes next goes to the extent that is ahead, or waits for one. */
void log_end_current(struct disk_log *log);
/* NULL: none is ahead. use_reserve: one of the reserve would do. */
struct tail_extent *log_first_ahead(const struct disk_log *log, bool use_reserve);
void log_cancel_roll_record(struct tail_extent *tail);
/* Decides its final length: what is flushed of it. */
void tail_decide(struct tail_extent *tail, uint64_t needs_flushed);

/* --- log_members.c --- */

/* The member with this index failed. It gets no new extents for a while, and what was
 * opened ahead on it is not used. */
void log_member_failed(struct tail_extent *tail, uint32_t member, int code);
/* Nobody has room, so nobody is to be avoided for that. */
void log_forget_full(struct disk_log *log);
/* Members for a new extent, without those that failed lately; if too few are left, those
 * whose failure is longest ago are taken all the same. ret_avoid: the nodes that were
 * done without. */
struct chosen log_choose(struct disk_log *log, uint64_t ret_avoid[REPLICAS_MAX],
                         uint32_t *ret_avoid_count);
/* The same, but none that failed lately. */
struct chosen log_choose_sound(struct disk_log *log);
bool log_is_avoided(const struct disk_log *log, uint64_t node);
/* Extents ahead that have a member which is avoided are not used. */
void log_skip_ahead(struct disk_log *log);
bool tail_has(const struct tail_extent *tail, uint64_t node);
/* Is there anywhere else to go from this extent? */
bool tail_has_others(const struct tail_extent *tail);
/* No roll helps: the epoch is over, or its only store is out of service. */
bool tail_failure_is_final(const struct tail_extent *tail, int code);
/* Must it be told how the extent ends? Not if it is gone for ever, or not whole in the
 * group: then recovery does. */
bool log_member_counts(const struct tail_extent *tail, uint32_t member);
/* The member did not answer, and may yet. */
bool log_is_silence(int code);
/* Whoever opened it waits for nobody any more. */
bool log_is_ending(const struct disk_log *log);
/* After all members that have something were asked for it in vain: pauses and says true
 * if it may help to ask again. *until_ns: 0 at first. */
async bool log_may_ask_again(struct disk_log *log, int code, uint64_t *until_ns);
/* A member that owes an answer for longer than the limit fails, if that helps. */
void log_check_slow(struct disk_log *log);
/* Rolls on from extents whose group has changed, or has a member more that answers. */
void log_renew(struct disk_log *log);

/* --- log_opener.c --- */

/* Starts the opener if an extent is missing, or a length is due. */
void log_want_extents(struct disk_log *log);
/* Nothing of the log is used any more by creates that are under way. */
void log_creations_leave(struct disk_log *log);
/* One is under way on this node's own store, which goes with the log's owner. */
bool log_creates_here(const struct disk_log *log);

/* --- log_finals.c --- */

void log_finals_fill(struct disk_log *log, enum proposer proposer, uint64_t covers,
                     struct cluster_command *command);
void log_finals_settle(struct disk_log *log, enum proposer proposer, bool committed);
/* Somebody waits for a length, and it can be committed. */
bool log_finals_due(const struct disk_log *log);
/* What the cluster says of this disk may have changed. */
void log_look_at_state(struct disk_log *log);

/* --- log_janitor.c --- */

/* Starts what is to be told to members. */
void log_clean_up(struct disk_log *log);
/* The same, and waits for it, but not for ever. */
async void log_clean_up_all(struct disk_log *log);
/* Janitors that are under way let go of the log. None may be at work on this node. */
void log_janitors_leave(struct disk_log *log);
bool log_cleans_here(const struct disk_log *log);

/* --- log_status.c --- */

/* No new extent, and why. */
void log_stalled(struct disk_log *log, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* --- log_close.c --- */

/* Frees it; nothing may be owed and no task may run. */
void log_free(struct disk_log *log);
/* Waits until all that was handed to the log is on all members, and flushes it. If that
 * gets on no more for so long the log goes down (-ETIMEDOUT). */
async int log_flush_all(struct disk_log *log, uint64_t limit_ns);

#endif
