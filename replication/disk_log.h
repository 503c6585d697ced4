/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The replicated log of one disk: records in, batches on every member of the write set,
 * commits in order, retained until flushed, rolled from extent to extent. The rules are
 * in doc/protocol.md. doc/request-life.md follows one record through it.
 *
 *   record: queued -> in a sealed batch -> in flight -> committed -> flushed (retained
 *   until here)
 *
 * Take-over (log_open) gives the log its writer: lease, stop, longest sound prefix, cut;
 * then the caller replays and appends.
 */
#ifndef PARALLAX_REPLICATION_DISK_LOG_H
#define PARALLAX_REPLICATION_DISK_LOG_H

#include "blockstore/store.h"
#include "replication/cluster.h"

#define LOG_TEXT_MAX 200U

struct disk_log;
struct replica_directory; /* replica.h */

/* One thing to log; embedded in the caller's request, valid until committed is called
 * with its last piece (or an error). */
struct log_record {
    enum entry_kind kind;
    uint64_t key;            /* first block, node index, or version */
    uint64_t count;          /* blocks: of data (1 to 256) or of the interval */
    uint8_t aux;             /* NODE: level */
    uint32_t generation;     /* a batch holds records of one generation */
    uint64_t checkpoint;     /* K of NODE and LIST records, else 0 */
    bool use_reserve;        /* checkpoints may use the store's reserve */
    struct slice data;       /* count * BLOCK_SIZE bytes; a reference is taken over */
    struct log_callbacks *callbacks;
    /* private to the log: */
    uint64_t sealed;         /* blocks already put into batches */
    int result;
    STAILQ_ENTRY(log_record) link;
};

/* Part of a record that lies in one batch: `count` blocks with keys from key on (an
 * interval, a marker: its whole count), at consecutive addresses from address on. */
struct log_piece {
    enum entry_kind kind;
    uint64_t key, count;
    uint8_t aux;
    uint32_t generation;
    uint64_t checkpoint;
    struct address address;  /* null for intervals and markers */
    const uint32_t *crcs;    /* one per block; NULL for intervals and markers */
    uint64_t number;         /* of the batch */
    bool is_spare;           /* only in a replay: see log_replay */
};

/* How the log talks back; one for each disk. Called on the loop, never from inside
 * log_append; they must not suspend. */
struct log_callbacks {
    /* In order of commit; last: the record is done. */
    void (*committed)(struct log_callbacks *self, struct log_record *record,
                      const struct log_piece *piece, bool last);
    /* The record will not be committed (log failed, -PLX_EFULL); no more calls for it. */
    void (*failed)(struct log_callbacks *self, struct log_record *record, int code);
    /* A forced roll gave committed blocks new addresses: repoint what still names the old
     * ones. The piece has the new address; was: the old one. */
    void (*moved)(struct log_callbacks *self, const struct log_piece *piece,
                  struct address was);
    /* The log gave up for good: -PLX_EEPOCH, -PLX_EFAILED. */
    void (*down)(struct log_callbacks *self, int code);
};

struct log_budget {          /* shared by the logs of a daemon */
    uint64_t limit_bytes, used_bytes;
    uint64_t idle_bytes;     /* of batches kept for reuse */
    struct waitlist waiting;
};

struct log_options {
    struct loop *loop;
    struct cluster *cluster;
    struct store *store;     /* the local member */
    struct replica_directory *directory; /* of all members; NULL: store alone */
    struct log_callbacks *callbacks;
    struct log_budget *retained;
    struct buffer_pool *buffers; /* for headers and re-reads */
    uint64_t node;           /* this node's id */
    uint64_t disk;
    /* A member that takes longer to answer counts as failed if the log can do without it.
     * 0: LOG_APPEND_LIMIT_MS, LOG_SYNC_LIMIT_MS. */
    uint64_t append_limit_ns, sync_limit_ns;
    bool force; /* takes the lease also from a node that is not known to be down */
    const bool *is_ending; /* true: nobody is waited for any more; may be NULL */
    /* For tests, may be NULL: called when a batch gets its number. One that is refused
     * for lack of space gives its number back: the last call for a number counts. */
    void (*sealed)(void *arg, uint64_t disk, const struct log_piece *pieces,
                   uint32_t count, uint64_t number);
    void *sealed_arg;
};

/*
 * Take-over, steps 1 to 5 of doc/protocol.md: commits the lease, stops every extent of
 * the disk, finds the longest sound prefix, writes again what is not on every member, and
 * commits the cut (if any extent was open). On return nothing of an older epoch can be
 * acknowledged any more. It waits for members out of reach, up to TAKE_OVER_WAIT_NS, and
 * for as many as an extent needs, as long again, and says so in the log.
 * Errors: -PLX_EOWNED (another node holds it, is neither DOWN nor OUT nor GONE, and it is
 * not `force`; the text has its address), -PLX_EDAMAGED (the text says what is missing),
 * -EHOSTUNREACH (the text says which members are needed), -ETIMEDOUT (what was found
 * could not be written again; the text says why), -PLX_EEPOCH, -PLX_EPRECONDITION (raced
 * by another take-over), ...
 */
async int log_open(const struct log_options *options, struct disk_log **ret_log,
                   struct error *err);

/* Step 6: calls fn for every piece after the committed checkpoint's `covers`, in order
 * of number, nodes and markers included, void batches left out. crcs as in committed.
 * After all these it is called for second copies of batches, which a forced roll left
 * behind, in no order and marked as spare: nothing names their blocks. */
typedef int log_replay_fn(void *arg, const struct log_piece *piece);
async int log_replay(struct disk_log *log, log_replay_fn *fn, void *arg,
                     struct error *err);

/* Queues a record. Its order among records of this log is the order of these calls. */
void log_append(struct disk_log *log, struct log_record *record);

/* What comes next goes to another extent than what came so far, so that this one can
 * become final. Null if there is no other one yet, or nothing in this one. */
struct address log_end_extent(struct disk_log *log);

/* Makes everything committed before this call durable on all members. */
struct log_flush {
    void (*done)(struct log_flush *flush);
    int result;
    /* private: */
    uint64_t number;
    STAILQ_ENTRY(log_flush) link;
};
void log_flush(struct disk_log *log, struct log_flush *flush);

/* For people, and for who watches: how far it is, and what it waits for. */
struct log_status {
    uint64_t epoch, last, committed, flushed;
    uint64_t retained_bytes, queued_bytes;
    uint32_t extent_count;   /* on the list, or not known to have left it */
    uint32_t member_count;   /* of the extent that is written to; 0: there is none */
    uint64_t members[REPLICAS_MAX];
    uint64_t waiting_ns;     /* writes have waited for so long; 0: they do not */
    char text[LOG_TEXT_MAX]; /* for what they wait; "": they do not */
};
void log_status(const struct disk_log *log, struct log_status *ret_status);

uint64_t log_epoch(const struct disk_log *log);
/* Is what is appended now in a group of the disk's pool? When that changes it soon is. */
bool log_writes_to_pool(const struct disk_log *log);
uint64_t log_last_number(const struct disk_log *log);      /* highest sealed */
uint64_t log_committed_number(const struct disk_log *log);
uint64_t log_flushed_number(const struct disk_log *log);
uint64_t log_retained_bytes(const struct disk_log *log);
/* Bytes appended since the log's start; the difference to an earlier value is the log
 * since then. */
uint64_t log_appended_bytes(const struct disk_log *log);

/*
 * Fills in what a command of this disk carries: epoch, flushed, and the final lengths
 * decided since. Extents that are final on their members and have nothing above number
 * `covers` are marked as leaving; so one that a checkpoint covers leaves with the next
 * command. The array lies in the log and is valid until log_finals_committed, which tells
 * that the command was committed, or that it was refused. One command at a time.
 */
void log_finals_prepare(struct disk_log *log, uint64_t covers,
                        struct cluster_command *command);
async void log_finals_committed(struct disk_log *log, bool committed);

/* Extents that ended hold what lies beyond their length until that is committed, and
 * their headers until they are off the list. Whether some are on their way there, and
 * whether some do not get on without another command of the disk. */
bool log_is_settling(const struct disk_log *log);
bool log_awaits_command(const struct disk_log *log);

/* Everything that waits, and all that comes, fails with code; then it is `down`. What was
 * acknowledged is on its members. */
void log_give_up(struct disk_log *log, int code);

/* Waits for what is in flight, flushes, stops and finalizes all extents and commits
 * LEASE_CLOSE. The log is gone after it, whatever the result. */
async int log_close(struct disk_log *log, struct error *err);
/* Ends it without any commit (after `down`, or in tests). */
async void log_abandon(struct disk_log *log);

#endif
