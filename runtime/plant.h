/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Planted bugs: places where a build with -Dplants=true can be made to do the wrong
 * thing, so that the tests can show they would notice. PARALLAX_PLANT in the environment
 * names the one that is active. Every other build has constants here and no code.
 *
 * tests/simulation/plants.sh says for each which test finds it.
 */
#ifndef PARALLAX_RUNTIME_PLANT_H
#define PARALLAX_RUNTIME_PLANT_H

#include "runtime/base.h"

#define PLANTS(X)                                                                        \
    X(FLUSH_WITHOUT_SYNC, "a flush is answered without a sync")                          \
    X(FLUSH_JOINS_SYNC, "a flush is answered by a sync issued before its batches ended") \
    X(RECYCLED_HEADER, "a scan takes an old batch in a recycled slab for a new one")     \
    X(SCAN_UNVERIFIED, "a scan does not verify data")                                    \
    X(READ_UNVERIFIED, "a read does not verify data")                                    \
    X(NODES_UNFLUSHED, "a root is committed before its nodes are flushed")               \
    X(REPLAY_SKIPS, "replay loses a batch")                                              \
    X(NODE_GENERATION, "a snapshot's late node has the generation of the head")          \
    X(SNAPSHOT_LATE, "a checkpoint passes a marker whose snapshot is not committed")     \
    X(COVERS_HIGH, "a checkpoint covers one batch too many")                             \
    X(VOID_REPLAYED, "a cut does not make the batches above it void")                    \
    X(APPEND_UNORDERED, "an append is answered before the one below it completed")      \
    X(RETAINED_EARLY, "batches are forgotten when committed, not when flushed")          \
    X(ACK_EARLY, "a batch is committed before its append completed")                     \
    X(ACK_MISSING, "a batch is committed though one member does not have it")           \
    X(APPEND_CREATES, "an append makes the extent that is not there")                    \
    X(SHORTEST_PREFIX, "a take-over goes on from the shortest sound copy")               \
    X(UNFLUSHED_STAYS, "a forced roll leaves what is not flushed where it is")           \
    X(EPOCH_REUSED, "a lease that is taken keeps the epoch")                             \
    X(STALE_WHOLE, "a member that an extent is opened without stays whole")              \
    X(COPY_DROPPED, "a copy that was not told its end is dropped")                       \
    X(LEAVES_EARLY, "a member leaves before the one that comes is whole")                \
    X(RESTART_IGNORED, "extents ahead are used whose member was restarted")              \
    X(SLOW_ANYWHERE, "a slow member makes a roll that does not get rid of it")           \
    X(LENGTH_EARLY, "a length is committed before what lay above it is flushed")         \
    X(LEASE_UNWATCHED, "a log goes on although its lease is another's")                  \
    X(RANGE_UNLOCKED, "two changes of parts of one block run together")                  \
    X(RANK_FROM_LIVE, "a block's place is its rank among the live ones")                 \
    X(TRIM_BEFORE_CHECKPOINT, "blocks are trimmed before the checkpoint is committed")   \
    X(BOUND_AT_CHECKPOINT, "what died is told by the bound of the checkpoint's time")    \
    X(LIST_WRONG_P, "a dead list is trimmed with what died after its P")                \
    X(NODE_FREED_SHARED, "a node of the parent version is freed")                        \
    X(COLLAPSE_SHARED, "a collapse frees what the child shares")                         \
    X(COLLAPSE_NEIGHBOURS, "two neighbours collapse at once")                            \
    X(BRANCH_POINT_LOST, "a version without a name goes although two grow from it")      \
    X(DEAD_RESURRECTED, "a restart takes dead blocks for live ones")                     \
    X(LIST_FORGOTTEN, "a dead list counts as trimmed before it is")                      \
    X(SHORT_COPY_WHOLE, "recovery takes a copy that ends too early for whole")          \
    X(MERGE_FORGOTTEN, "recovery does not let die what is dead elsewhere")               \
    X(NEWER_DROPPED, "recovery drops an extent that is newer than what it asked for")    \
    X(TRIM_WHILE_READ, "what a removed snapshot's reader needs is trimmed")              \
    X(READ_AFTER_LEASE, "a host reads what it knew although it gave the lease up")

enum plant {
#define X(name, text) PLANT_##name,
    PLANTS(X)
#undef X
};

#ifdef PARALLAX_PLANTS
static inline bool planted(enum plant plant)
{
    static const char *const names[] = {
#define X(name, text) #name,
        PLANTS(X)
#undef X
    };
    const char *active = getenv("PARALLAX_PLANT");
    return active != NULL && strcmp(active, names[plant]) == 0;
}
#else
static inline bool planted(enum plant plant)
{
    (void)plant;
    return false;
}
#endif

#endif
