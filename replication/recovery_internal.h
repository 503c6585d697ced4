/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of recovery share. */
#ifndef PARALLAX_REPLICATION_RECOVERY_INTERNAL_H
#define PARALLAX_REPLICATION_RECOVERY_INTERNAL_H

#include "blockstore/copy_rpc.h"
#include "blockstore/copy_rpc_format.h"
#include "blockstore/install.h"
#include "replication/recovery.h"
#include "replication/recovery_decide.h"

static_assert(RECOVERY_PARALLEL_MAX < STORE_INSTALLS_MAX, "each has its install");

/* A growing list. */
struct address_list {
    struct address *at;
    size_t count, cap;
};
/* -ENOMEM */
int address_list_add(struct address_list *list, struct address address);
void address_list_done(struct address_list *list);

/* --- recovery_source.c: members that are asked --- */

struct recovery_source {
    uint64_t node;
    struct uid store; /* the one that the state names */
};
struct source_call {
    struct rpc_call call;
    struct event over;
    struct writer head;
    struct slice payload;
    int result;
    LIST_ENTRY(source_call) link;
};
LIST_HEAD(source_call_list, source_call);

/* Blocks that are on their way. */
struct source_fetch {
    struct source_call call;
    struct copy_rpc_fetch head;
    uint32_t from, max;
};

/* A page of a group's extents from an address on. The array has room for
 * COPY_RPC_PAGE_MAX. */
async int source_inventory(struct recovery *r, const struct recovery_source *source,
                           struct address from, struct copy_extent *ret_extents,
                           uint32_t *ret_count, bool *ret_more);
async int source_describe(struct recovery *r, const struct recovery_source *source,
                          struct address extent, struct copy_description *ret);
/* At most `max` blocks of a final extent, from one on. Each begin has its end, which
 * waits; the payload, which may be none, is the caller's. */
void source_fetch_begin(struct recovery *r, const struct recovery_source *source,
                        const struct copy_extent *extent, uint32_t from, uint32_t max,
                        bool wants_bad, struct source_fetch *fetch);
async int source_fetch_end(struct source_fetch *fetch, struct copy_blocks *ret,
                           struct slice *ret_payload);
/* Both. */
async int source_fetch(struct recovery *r, const struct recovery_source *source,
                       const struct copy_extent *extent, uint32_t from, uint32_t max,
                       bool wants_bad, struct copy_blocks *ret,
                       struct slice *ret_payload);
async int source_finalize(struct recovery *r, const struct recovery_source *source,
                          struct address extent, uint32_t length);
/* The state, nonce and length of what a member, whole or not, has of a disk's extent. */
async int source_info(struct recovery *r, const struct recovery_source *source,
                      struct address extent, uint64_t disk, struct copy_extent *ret);
/* Ends calls that are under way. */
void source_cancel_all(struct recovery *r);
/* The member has said what it has, whatever that is. */
bool source_has_answered(int code);

/* --- recovery_sweep.c: a group --- */

struct sweep {
    struct recovery *r;
    uint16_t group;
    uint64_t missing_since; /* when it began; 0: it unites, */
    uint64_t others;        /* with these, */
    uint64_t unsure_below;  /* of the group then */
    uint32_t waiting;       /* extents that were open without this node when it began */
    uint32_t source_count;
    struct recovery_source sources[REPLICAS_MAX]; /* whole when it began */
    struct address_list local; /* extents of the group here, in order, when it began */
    bool *is_seen;             /* for each of these: some source has it */
    bool is_incomplete;        /* something is missing still, or may be */
    bool has_changed;          /* something was done that is worth another look */
    uint32_t copying;
};

/* One extent on its way. */
struct copier {
    struct recovery *r;
    struct task_call task;
    struct sweep *sweep; /* NULL: it is idle */
    uint32_t source;     /* the first one that is asked */
    struct copy_extent extent;
};

/* What there is to copy of a group goes into the status. */
async void recovery_survey(struct recovery *r, uint16_t group);
/* Is there anything of the group that this node has to get from others? It is missing; or
 * it is taken for whole, may yet lack what another one has that is, too, and has not seen
 * all that these have (cluster_group.unsure_below). */
bool recovery_is_due(const struct recovery *r, const struct cluster_group *group);
/* Another number if others are whole in the group, and in reach. 0: none is. */
uint64_t recovery_others(const struct recovery *r, const struct cluster_group *group);
/* Makes this node whole in a group. 0: it is; -EAGAIN: not yet; -ENOMEM, -PLX_EFAILED. */
async int recovery_group(struct recovery *r, uint16_t group);
/* What was as on others when a group became whole may have died since: who trimmed it
 * may not have known that this node counts. */
async void recovery_settle(struct recovery *r, uint16_t group,
                           const struct address_list *taken_over);

/* This node in the group; NULL: it is no member. */
const struct group_member *recovery_self(const struct recovery *r, uint16_t group);
struct recovery_facts recovery_facts_of(const struct recovery *r, struct address extent,
                                        const struct copy_extent *source);
/* All whole members but this node. False: one of them cannot be asked, or none is. */
bool recovery_sources(const struct recovery *r, uint16_t group,
                      struct recovery_source *ret, uint32_t *ret_count);
/* A stop of what was never there leaves a mark, which is as good as nothing. */
bool recovery_has_nothing(const struct copy_extent *copy);
/* What is dead in a member's final copy is dead here. */
async int recovery_merge(struct recovery *r, const struct recovery_source *source,
                         struct address extent);
/* Lists what is here of the group. Afterwards sweep_end. */
async int sweep_list_local(struct sweep *s);
void sweep_end(struct sweep *s);

/* --- recovery_mend.c: a copy here that is not what it should be --- */

/* 0: it is, or it is nobody's business here; -PLX_ENOTHERE: nobody who can be asked has
 * anything of it that is sound; else it may be tried again. */
async int recovery_mend_one(struct recovery *r, struct address extent);

/* --- recovery_mends.c: those that wait for it --- */

/* At most so many are waited for; others are found again. */
#define RECOVERY_MENDS_MAX 256U
#define RECOVERY_MEND_KEY  "m" /* doc/recovery.md */
struct mend_extent {
    struct address extent;
    uint64_t due_ns, pause_ns; /* when it is tried again; the last pause */
    uint64_t asked;            /* who could be asked the last time */
    bool is_again;             /* it was found once more while it was worked on */
    bool is_vain;              /* nobody who could be asked had it sound */
    bool is_kept;              /* for the next process */
    TAILQ_ENTRY(mend_extent) link;
};
/* Its task runs, if there is anything to do. */
void recovery_mend_run(struct recovery *r);
/* Somebody may be in reach who was not. */
void recovery_mend_wake(struct recovery *r);
/* It will not be forgotten, whatever happens to this process. */
async int recovery_mend_keep(struct recovery *r, struct address extent);
/* Those that a former process has kept. */
async void recovery_mend_load(struct recovery *r);
/* Its task has ended. */
void recovery_mend_forget(struct recovery *r);

/* --- recovery_end.c: copies that nobody makes whole --- */

/* Deletes what is here of a group that this node has left. */
async int recovery_leave(struct recovery *r, uint16_t group);
/* A copy that is not final ends, where the state or the other whole members say so; one
 * that never was goes. 0; -EAGAIN: not yet */
async int recovery_end(struct recovery *r, struct address extent);

/* --- recovery_copy.c --- */

/* Copies an extent. 0: it is here, or it was dead by now. */
async int recovery_copy(struct copier *copier);
/* What is here. */
struct copy_extent recovery_local(const struct recovery *r, struct address extent);

/* --- recovery.c --- */

/* What these others have of an unsure group is here, too. 0: never looked. */
struct united {
    uint64_t others, unsure_below;
};

/* A group that became whole; what it took over is looked at once more. */
struct settling {
    uint16_t group;
    uint64_t due_ns;
    struct address_list taken_over;
    STAILQ_ENTRY(settling) link;
};

struct recovery {
    struct recovery_options options;
    struct cluster_watcher watcher;
    struct task_call task;
    struct timer timer;
    bool is_running, is_stopping, is_woken;
    struct waitlist changed; /* something that somebody waits for */
    struct source_call_list calls;
    struct copier copiers[RECOVERY_PARALLEL_MAX];
    struct sweep sweep; /* of the worker */

    uint64_t allowed_ns; /* by the limit, the next bytes may come then */
    uint64_t rate_since_ns, rate_bytes;
    struct recovery_status status;
    uint64_t said;                  /* what the state said at the last look */
    bool is_pending;                /* something is left to do */
    bool has_begun;                 /* what the start found in the store is known */
    struct address_list taken_over; /* for the group that is being made whole: they are
                                     * here as on others; some more than once */
    struct united *united; /* by this process; at the group's number */
    size_t united_count;
    STAILQ_HEAD(, settling) settling;
    TAILQ_HEAD(, mend_extent) mends; /* the first one is worked on, if is_mending */
    uint32_t mend_count;
    bool mends_run, is_mending;
    struct task_call mend_task;
    struct timer mend_timer;
    struct waitlist mends_changed;
    struct metric *extents_copied, *bytes_copied, *extents_mended;
};

static inline const struct cluster_state *recovery_state(const struct recovery *r)
{
    return r->options.view.state(r->options.view.arg);
}

static inline bool sources_equal(const struct recovery_source *a,
                                 const struct recovery_source *b)
{
    return a->node == b->node && uid_equal(a->store, b->store);
}

/* So many bytes came: guests first, and the limit. */
async void recovery_rest(struct recovery *r, uint64_t bytes);
/* What it does, or waits for. */
void recovery_say(struct recovery *r, const char *fmt, ...) attr_printf(2, 3);
/* So much more, or less, is left. */
void recovery_count(struct recovery *r, int64_t extents, int64_t bytes);

#endif
