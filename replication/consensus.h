/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Agreement of several nodes on one sequence of commands, and so on one state: Raft, by
 * libraft, with the node's key-value store under it (keys 'r') and messages through a
 * table that the caller gives. doc/consensus.md says how, and which rules hold;
 * doc/format-consensus.md describes the bytes.
 *
 *      opening -> follower <-> candidate -> leader -> closed
 *                     any of these -> failed
 *
 * Fail-stop: after an error of storage, or anything else that cannot be, consensus in
 * this process is over. Whatever waits and whatever comes later gets -PLX_EFAILED; the
 * process should end, and start again from what is stored.
 *
 * A handle belongs to one loop.
 */
#ifndef PARALLAX_REPLICATION_CONSENSUS_H
#define PARALLAX_REPLICATION_CONSENSUS_H

#include "runtime/runtime.h"

#define CONSENSUS_COMMAND_MAX  (1 * MIB)  /* bytes of one command */
#define CONSENSUS_SNAPSHOT_MAX (256 * MIB) /* bytes of an encoded state */
#define CONSENSUS_MEMBERS_MAX  1024U
/* Bytes of one message of the link: a snapshot with its members, or entries. */
#define CONSENSUS_MESSAGE_MAX  (CONSENSUS_SNAPSHOT_MAX + 64 * KIB)
/* Messages that came and wait; more are dropped, as a network would. */
#define CONSENSUS_INBOX_BYTES  (CONSENSUS_MESSAGE_MAX + 16 * MIB)
#define CONSENSUS_INBOX_COUNT  4096U
/* Submits that wait for the leader's log: more wait in their queue. */
#define CONSENSUS_BATCH_MAX    256U
#define CONSENSUS_WAITING_MAX  16384U /* forwarded ones included; more: -PLX_ELIMIT */
#define CONSENSUS_WAITING_BYTES_MAX (64 * MIB) /* of forwarded ones; more are not taken */

struct consensus;

/* The state that the commands make. Calls come from one task, one at a time; they must
 * not suspend, and must be deterministic. */
struct consensus_machine {
    void *arg;
    /* A committed command. Indexes grow, with gaps. What it writes to `answer` goes to
     * whoever submitted the command on this node. Not 0: this node cannot carry it out
     * though others may, and consensus fails with that code. */
    int (*apply)(void *arg, uint64_t index, const void *bytes, size_t len,
                 struct writer *answer);
    void (*encode)(void *arg, struct writer *ret);
    /* Replaces the state; on failure the old one stays. Foreign bytes. */
    int (*decode)(void *arg, const void *bytes, size_t len, struct error *err);
    /* Not 0: `apply` would fail for these bytes, which another node sent, whatever the
     * state is. They are not put into the log, where nobody could go on behind them. May
     * be NULL. */
    int (*check)(void *arg, const void *bytes, size_t len);
};

/* How messages go out. They may be lost, late, out of order, or come twice. The sender
 * that consensus_received is told must be proven. */
struct consensus_link {
    void *arg;
    /* bytes are valid during the call; at most CONSENSUS_MESSAGE_MAX. Must not suspend,
     * and must not call back. */
    void (*send)(void *arg, uint64_t node, const void *bytes, size_t len);
};

/* 0 in a field: the default. */
struct consensus_tuning {
    uint32_t snapshot_entries; /* of the log before the state is stored; 4096 */
    uint32_t trailing_entries; /* that are kept behind a snapshot; 256 */
    uint64_t snapshot_bytes;   /* of the log, the same; 8 MiB */
    uint32_t piece_bytes;      /* of a snapshot in the store; 1 MiB */
    uint32_t append_bytes;     /* of entries in one message; 192 KiB */
    uint32_t install_ms;       /* before a snapshot is sent again; 10 s */
    uint32_t wait_ms;          /* of a submit or barrier; 5 s */
};

struct consensus_options {
    struct loop *loop;
    struct kv *kv;
    uint64_t node; /* not 0; never another one with the same store */
    struct consensus_machine machine;
    struct consensus_link link;
    struct consensus_tuning tuning;
    /* Consensus has failed, once, with one line of text; on the loop, must not suspend,
     * and may not close it from inside. May be NULL. */
    void (*failed)(void *arg, const char *why);
    void *arg;
};

/* Loads what the store holds: the machine is decoded, and what is known to be committed
 * applied. An empty store makes a node that waits to be added by a leader. Damage, and a
 * format from a newer version, are errors that name the key. */
async int consensus_open(const struct consensus_options *options,
                         struct consensus **ret_consensus, struct error *err);
/* Makes the log of a new cluster, whose only voter is `node`. Once, for one node of it,
 * before it is opened. -PLX_EEXISTS: the store has a log already. `also` (NULL: nothing)
 * is what else changes in the store in the same write; taken over. */
async int consensus_bootstrap(struct kv *kv, uint64_t node, struct kv_batch *also,
                              struct error *err);
/* The same, but it begins with a state that commands up to `index` (not 0) have made. An
 * end of the process leaves all of it or nothing. */
async int consensus_bootstrap_from(struct kv *kv, uint64_t node, uint64_t index,
                                   const void *state, size_t len, struct kv_batch *also,
                                   struct error *err);
/* Everything that waits ends with -PLX_ECANCELLED. */
async void consensus_close(struct consensus *c);

/* A message that a node of this cluster sent. Copied. */
void consensus_received(struct consensus *c, uint64_t from_node, const void *bytes,
                        size_t len);

/*
 * Has a command carried out. 0: it was, here too, and `ret_answer` (replaced; writer_done
 * it) is what the machine wrote. Otherwise:
 *   -PLX_ENOLEADER    it was not carried out and never will be
 *   -PLX_EUNKNOWN     it may have been, or may be yet
 *   -PLX_EFAILED, -PLX_ECANCELLED   the same, and this node takes no more
 *   -PLX_ELIMIT, -EMSGSIZE, -ENOMEM  refused at once
 * Who repeats one (commands are idempotent by client and sequence) need not care which.
 * While this node is the only voter a command waits for its storage, however long that
 * takes; otherwise at most wait_ms.
 */
async int consensus_submit(struct consensus *c, const void *bytes, size_t len,
                           struct writer *ret_answer);
/* Afterwards everything that was committed anywhere before the call has been applied
 * here. -PLX_ENOLEADER: no leader with a majority answered in time. */
async int consensus_barrier(struct consensus *c);

uint64_t consensus_leader(const struct consensus *c); /* 0: none is known */
bool consensus_is_leader(const struct consensus *c);
uint64_t consensus_term(const struct consensus *c);
uint64_t consensus_applied(const struct consensus *c);
/* Where the log ends in this node's store, and how far what stands there is known to be
 * committed. As long as the store is what it was, no later opening finds an end before
 * that. */
void consensus_stored(const struct consensus *c, uint64_t *ret_end,
                      uint64_t *ret_committed);
/* Where it ends in a store that is not open; 0: there is none. */
async int consensus_stored_in(struct kv *kv, uint64_t node, uint64_t *ret_end,
                              struct error *err);
bool consensus_has_failed(const struct consensus *c);
int consensus_failure(const struct consensus *c); /* 0: it has not; or why */

/* --- membership --- */

enum consensus_role {
    CONSENSUS_STANDBY = 0, /* has the log, does not vote */
    CONSENSUS_VOTER = 1,
    CONSENSUS_SPARE = 2, /* is known, has nothing */
};

struct consensus_member {
    uint64_t node;
    enum consensus_role role;
};
/* The membership this node knows, whether committed or not: at most `max` are stored,
 * the number of all is returned. */
uint32_t consensus_members(const struct consensus *c, struct consensus_member *ret,
                           uint32_t max);

/*
 * Changes, for the leader to call; one at a time. They return when the change is
 * committed. -PLX_ENOLEADER: not the leader, or no longer (the change may be carried out
 * yet); -PLX_EBUSY: another one is under way; -ETIMEDOUT: a node that was to vote did not
 * catch up; -PLX_EEXISTS, -PLX_EMISSING. -PLX_EPRECONDITION: it would take the leader's
 * own vote, which must be transferred first.
 */
async int consensus_add(struct consensus *c, uint64_t node); /* as a spare */
async int consensus_set_role(struct consensus *c, uint64_t node,
                             enum consensus_role role);
async int consensus_remove(struct consensus *c, uint64_t node);
/* Hands leadership to a voter (0: whichever is best). 0: it has it; -ETIMEDOUT: it did
 * not take it. */
async int consensus_transfer(struct consensus *c, uint64_t node);

#endif
