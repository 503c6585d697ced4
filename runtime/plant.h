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
    X(DAMAGED_COUNTS, "a copy that ends below what was flushed counts")                  \
    X(FLUSHED_FORGOTTEN, "a take-over forgets what commands say was flushed")            \
    X(SCANNED_ENOUGH, "one copy that a restart cut short is enough for a take-over")     \
    X(SCAN_FORGOTTEN, "a second restart forgets that the first one cut an extent short") \
    X(GAP_PASSED, "a take-over goes on behind a gap in the numbers")                     \
    X(LAST_UNSTOPPED, "a take-over does not stop the extent that was listed last")       \
    X(LOST_WANTED, "a take-over waits for members that were declared lost")              \
    X(AGAIN_NO_RESERVE, "what is written again finds no room in a full store")           \
    X(SYNC_STOPPED, "a member that was restarted answers a sync")                        \
    X(ABSENT_FORGOTTEN, "the stop of an extent that is not there is forgotten")          \
    X(FORMER_COMMANDS, "a command of a former owner is carried out")                     \
    X(UNKNOWN_REFUSED, "a command whose outcome is lost counts as refused")              \
    X(MOVED_COMMITTED, "a root is committed whose nodes a forced roll moved")            \
    X(TRIM_UNNOTED, "what is trimmed while its copy comes in is forgotten")              \
    X(REJOINS_WHOLE, "a node that is chosen again counts as whole")                      \
    X(WHOLE_EARLY, "a member is whole though an open extent is not on it")               \
    X(ABANDONED_LEFT, "nobody ends the log of a disk whose host is lost")                \
    X(OTHER_STORE, "another store answers under an old name")                            \
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
