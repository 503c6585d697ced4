/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cluster state: a pure, deterministic state machine. Commands go in, the state
 * changes, a result comes out; no clock, no random, no I/O. Same commands, same state,
 * byte for byte (invariant 11). What feeds it is cluster.h. doc/format-cluster.md
 * describes the encodings.
 *
 *      disk --head_parent--> version --parent--> version ... --> none
 *
 * A disk's head grows from head_parent; a version's parent is the version it grew from.
 * A disk (or version) without a root of its own yet has the root of its parent.
 *
 * The life of a disk, in flags (each state keeps the flags of the one before it):
 *
 *      IMPORTING -> visible <-> TRASHED -> REMOVED -> HEADLESS -> no record
 *          |                                  |
 *          +--> no record                     +--> no record, if not SHARED
 *
 * The life of a version:
 *
 *      pending -> named -> unnamed -> collapsing -> gone
 *
 * The life of a node, in flags:
 *
 *      up <-> DOWN <-> OUT          what the leader sees
 *      DRAINING                     what people want, besides
 *      any of these -> GONE         for ever
 *
 * Extents lie in groups, groups belong to pools. A member of a group is *whole*, or
 * something may be missing on it:
 *
 *      not a member -> missing since an index <-> whole
 *
 * What leaves a group is either not whole, or all that stay are; one whole one stays.
 */
#ifndef PARALLAX_REPLICATION_CLUSTER_STATE_H
#define PARALLAX_REPLICATION_CLUSTER_STATE_H

#include <bsd/sys/tree.h>

#include "blockstore/address.h"
#include "runtime/runtime.h"

#define CLUSTER_NODES_MAX    1024U /* that are not GONE */
#define CLUSTER_NODE_RECORDS_MAX 4096U
#define CLUSTER_POOLS_MAX    64U
#define CLUSTER_GROUPS_MAX   65535U /* 16 bits of an address, and none is 0 */
#define POOL_GROUPS_MAX      16384U
#define CLUSTER_DISKS_MAX    100000U
#define CLUSTER_VERSIONS_MAX 1000000U
#define CLUSTER_CLIENTS_MAX  512U  /* whose last answer is kept; least recent goes */
#define CLONES_PER_COMMAND   10000U
#define REPLICAS_MAX         5U
#define POOL_COPIES_MAX      (REPLICAS_MAX - 1) /* a member more while another leaves */
#define POOL_COPIES_DEFAULT  3U
#define POOL_MIN_COPIES_DEFAULT 2U
#define DEFAULT_POOL         1U
#define DEFAULT_POOL_NAME    "default"
#define SNAPSHOTS_PER_COMMAND 1024U /* to be removed */
#define LISTS_MAX            64U   /* dead lists of one disk that are not trimmed yet */
#define SCHEDULE_RULES_MAX   8U
#define SCHEDULE_KEEP_MAX    10000U
#define SCHEDULE_EVERY_MAX_S (366U * 86400U)
#define TRASH_KEEP_DEFAULT_S 86400U
#define TRASH_KEEP_MAX_S     (3660U * 86400U) /* in ns it fits 64 bits easily */
#define SECTOR_BYTES         512U /* sizes of disks are multiples of it */
#define TOKENS_MAX           64U
#define TOKEN_DIGEST_BYTES   32U
#define TOKEN_LIFE_MAX_S     (31U * 86400U)
#define AUTHORITY_BYTES_MAX  (16 * KIB) /* certificate and key together */
/* Versions of one disk whose root is still to come: what a checkpoint may name. */
#define PENDING_VERSIONS_MAX (4 * FROZEN_LAYERS_MAX)

/* A map root. address null: the empty map. height: levels; 1 is a single leaf. */
struct map_root {
    struct address address;
    uint32_t crc;
    uint32_t generation;
    uint8_t height;
};

enum node_flags {
    NODE_DOWN = 1,     /* silent. Trims need not reach it where it is not whole */
    NODE_OUT = 2,      /* for so long that it is replaced */
    NODE_DRAINING = 4, /* is to have no data any more */
    NODE_GONE = 8,     /* removed, or declared lost; for ever */
    NODE_WITNESS = 16, /* has no store; never in a group */
    NODE_FLAGS_ALL = 31,
};
#define NODE_FLAGS_SETTABLE ((unsigned)(NODE_DOWN | NODE_OUT | NODE_DRAINING))

/* A host of the cluster. Its number is never given to another; a store that is replaced
 * is a new node. */
struct cluster_node {
    uint64_t id;
    struct uid store;           /* the incarnation of its store */
    uint64_t joined_wall_ns;
    char address[DISK_NAME_MAX + 1]; /* "HOST:PORT"; "": a cluster of one needs none */
    char domain[DISK_NAME_MAX + 1];  /* failure domain; "": a domain of its own */
    uint64_t capacity_bytes;    /* of its store; 0: it has not said */
    unsigned flags;
    uint32_t groups_before;     /* groups with higher numbers are younger than the node */
};

enum pool_flags {
    POOL_BY_DOMAIN = 1, /* no two copies in one failure domain, if there are enough */
    POOL_FLAGS_ALL = 1,
};

/* How many copies a disk has, and how far apart. */
struct cluster_pool {
    uint32_t id;                /* DEFAULT_POOL is always there */
    char name[DISK_NAME_MAX + 1];
    uint8_t copies, min_copies; /* 1 <= min_copies <= copies <= POOL_COPIES_MAX */
    unsigned flags;
};

struct group_member {
    uint64_t node;
    uint64_t missing_since; /* 0: it is whole, that is, it has every extent of the group
                               that is not dead, and nothing of it is missing. Else it
                               may lack what came up to the command with this index */
};

/*
 * The nodes that the extents of the group are on, final ones at least: until then it is
 * the write set that counts. Never goes away. One member at least is whole; only a group
 * all of whose members were declared lost has none.
 */
struct cluster_group {
    uint16_t id; /* 16 bits of the addresses in it */
    uint32_t pool;
    uint64_t epoch; /* counts the changes of who is a member */
    /* Each of several members may be the only one that has an extent with a smaller
     * sequence: none was whole when the last whole one was declared lost. 0: never. */
    uint64_t unsure_below;
    uint8_t member_count;
    struct group_member members[REPLICAS_MAX];
};

/* What lets a host in, once. Only the digest is known here. */
struct cluster_token {
    uint8_t digest[TOKEN_DIGEST_BYTES];
    uint64_t until_wall_ns;
    uint64_t node; /* that it let in; 0: none yet */
};

/* What signs the certificates of nodes; PEM, each with a NUL behind it. */
struct cluster_authority {
    char *certificate, *key;
};

/* An extent of a disk's log that a take-over must look at. */
struct log_extent {
    struct address extent;
    uint64_t epoch;             /* under which it was opened */
    uint8_t member_count;
    uint64_t members[REPLICAS_MAX]; /* node ids: its write set */
    bool final;                 /* its length is committed */
    uint32_t length;            /* if final */
    uint64_t last_number;       /* if final: last batch within length; 0: none */
};

struct cluster_checkpoint {
    uint64_t number;            /* K; 0: none yet */
    uint64_t covers;            /* P: operations of batches up to this are in the root */
    uint64_t last;              /* N: the checkpoint's own last batch */
};

/* What died with a checkpoint: its blocks of the log, chained from the last one. */
struct dead_list {
    uint64_t checkpoint;        /* K */
    struct address head;        /* the last block of the list */
    uint32_t crc;               /* of that block */
    uint32_t blocks;            /* 0: there is no list */
};

/* Snapshots that the daemon takes by itself. */
struct schedule_rule {
    uint32_t every_s;           /* 1 to SCHEDULE_EVERY_MAX_S; no two the same */
    uint32_t keep;              /* 1 to SCHEDULE_KEEP_MAX */
};

/* A cut: a batch of an epoch <= epoch with a number > number is void for ever. */
struct cluster_cut {
    uint64_t epoch, number;
};
/* Each kept cut voids something in a listed extent that no earlier one does, so there
 * are never more cuts than extents, and a take-over is never refused for them. */
#define CUTS_MAX LOG_EXTENTS_MAX

enum disk_flags {
    DISK_IMPORTING = 1,         /* hidden until published */
    DISK_TRASHED = 2,           /* hidden, can be restored; nobody may own it */
    DISK_REMOVED = 4,           /* also TRASHED: for ever; its versions have no names */
    DISK_HEADLESS = 8,          /* also REMOVED: its head is gone */
    DISK_SHARED = 16,           /* a clone was made of one of its versions, or it took
                                   over a version of another disk: what its extents hold
                                   is not just what it reaches beyond its parent */
    DISK_MOVING = 32,           /* it got another pool; the head's own blocks may lie in
                                   groups of the one before */
    DISK_FLAGS_ALL = 63,
};

TAILQ_HEAD(cluster_version_list, cluster_version);
TAILQ_HEAD(cluster_disk_list, cluster_disk);

struct cluster_disk {
    uint64_t id;
    char name[DISK_NAME_MAX + 1];
    unsigned flags;
    uint32_t pool;              /* of extents to come */
    uint64_t size_bytes;
    uint64_t created_wall_ns;
    uint64_t owner;             /* node id; 0: nobody holds the lease */
    uint64_t epoch;             /* lease epochs so far */
    uint64_t head_parent;       /* version id; 0: none */
    uint32_t head_generation;   /* stamps what is born in the head */
    bool has_root;              /* else the root is head_parent's */
    struct map_root root;
    struct cluster_checkpoint checkpoint;
    uint64_t newest_marker;     /* batch number of the newest committed snapshot marker */
    uint64_t abandoned_marker;  /* a SNAPSHOT of a marker up to this is refused */
    uint64_t collapsing_version; /* that collapses against this head; 0: none. Until it is
                                    gone the disk's lists are not trimmed */
    uint64_t quota_bytes;       /* 0: none */
    char *trash_name;           /* the name it had; NULL unless TRASHED */
    uint64_t trashed_wall_ns;   /* if TRASHED */
    uint32_t rule_count;
    struct schedule_rule *rules;
    uint64_t flushed;           /* F: highest flushed number a command has stated */
    uint32_t cut_count, cut_cap;
    struct cluster_cut *cuts;   /* that still void something listed; oldest first */
    uint32_t extent_count, extent_cap;
    struct log_extent *extents; /* in order of sequence */
    uint32_t list_count, list_cap;
    struct dead_list *lists;    /* not known to be trimmed; oldest first */
    uint32_t snapshot_count;    /* derived: named versions of this disk */
    uint32_t version_count;     /* derived: all versions of this disk */
    uint32_t pending_count;     /* derived */
    struct cluster_version_list pending;  /* by marker; derived */
    struct cluster_version_list versions; /* by id; derived */
    TAILQ_ENTRY(cluster_disk) head_link;  /* in its head_parent's heads */
    RB_ENTRY(cluster_disk) by_id, by_name;
};

struct cluster_version {
    uint64_t id;
    uint64_t disk;              /* whose snapshot it is (names live there) */
    char name[DISK_NAME_MAX + 1]; /* "": an unnamed branch point */
    uint64_t parent;            /* version id; 0: none */
    uint32_t generation;        /* stamps of all that is reachable are <= this */
    uint64_t size_bytes;
    uint64_t created_wall_ns;
    bool pending;               /* its root is not committed yet; `marker` tells where */
    uint64_t marker;            /* batch number of its marker in its disk's log; 0: it
                                   has none, it was a head until a rollback */
    uint64_t marker_epoch;
    struct map_root root;       /* unless pending */
    bool collapsing;            /* on its way out: no new child, no pending, no name */
    struct map_root against;    /* if collapsing: what is reachable from it stays */
    uint32_t child_count;       /* derived: heads and versions whose parent this is */
    bool spare;                 /* derived: in the list of such */
    struct cluster_version_list children; /* in no order; derived */
    struct cluster_disk_list heads;       /* in no order; derived */
    TAILQ_ENTRY(cluster_version) pending_link, disk_link, child_link, spare_link;
    RB_ENTRY(cluster_version) by_id, by_name; /* by (disk, name); unnamed: by id only */
};

/* A length that is final now, committed with the command that carries it. An extent that
 * left the list before is passed over: a command may be repeated. */
struct final_length {
    struct address extent;
    uint32_t length;
    uint64_t last_number;
    bool leaves;                /* nothing in it is needed for replay: off the list */
};

enum cluster_op {
    CLUSTER_INIT = 1,     /* cluster, node, store, wall_ns: and pool 1, and group 1, of
                             which this node is the only member */
    CLUSTER_DISK_CREATE,  /* name, size_bytes, flags, wall_ns, pool (0: 1) -> id */
    CLUSTER_DISK_RENAME,  /* name, new_name */
    CLUSTER_DISK_RESIZE,  /* disk, epoch, size_bytes */
    CLUSTER_DISK_PUBLISH, /* disk, epoch, size_bytes: no longer IMPORTING */
    CLUSTER_DISK_DISCARD, /* disk: only an IMPORTING one, without lease */
    CLUSTER_LEASE_TAKE,   /* disk, epoch (the one expected now), node, force -> new epoch.
                             From another node only if that is DOWN, OUT or GONE, or with
                             force */
    CLUSTER_LEASE_CLOSE,  /* disk, epoch, flushed, finals: gives the lease up; all
                             extents final, unless it is IMPORTING */
    CLUSTER_EXTENT_OPEN,  /* disk, epoch, count, members, flushed, finals, group,
                             group_epoch (the one expected) -> first extent; the sequences
                             are contiguous. At least min_copies of the pool, or all that
                             the group has if that is less, and a whole one among them.
                             Members of the group that are left out have something
                             missing from now on. Group 0, as in old logs: 1, without
                             these rules. count 0: for the finals alone */
    CLUSTER_CUT,          /* disk, epoch, number, flushed, finals: extents that finals
                             do not name stay as they are */
    CLUSTER_CHECKPOINT,   /* disk, epoch, checkpoint, root, roots, flushed, finals,
                             newest_marker, trimmed, list: lists of checkpoints up to
                             `trimmed` are forgotten, its own (if list.blocks != 0) is
                             added; -PLX_ELIMIT: there are LISTS_MAX */
    CLUSTER_SNAPSHOT,     /* disk, epoch, name (may be ""), marker, generation, wall_ns,
                             flushed, finals -> version id. generation stamps the newest
                             blocks of the version: at least head_generation (else it is
                             refused); the head's becomes generation + 1 */
    CLUSTER_SNAPSHOT_ABANDON, /* disk, epoch, marker: a later SNAPSHOT of it is refused;
                             -PLX_EPRECONDITION: it is committed already */
    CLUSTER_CLONE,        /* version, name, count, wall_ns, pool (0: that of the version's
                             disk) -> first disk id */
    CLUSTER_ROLLBACK,     /* disk, epoch (expected), version: only without owner: a new
                             head under it; the disk must be settled; the log restarts.
                             The old head stays as an unnamed version without children */
    CLUSTER_SNAPSHOT_RM,  /* disk, versions: they lose their names; those that have none,
                             or are gone, are passed over */
    CLUSTER_COLLAPSE_BEGIN, /* version; disk, epoch, number if its child is that disk's
                             head (else 0): the head must be as checkpoint `number` left
                             it. See cluster_version_removable */
    CLUSTER_COLLAPSE_END, /* version: what it alone reached is freed; it goes, its child
                             grows from its parent */
    CLUSTER_DISK_TRASH,   /* disk, epoch, wall_ns: only without owner, and settled */
    CLUSTER_DISK_RESTORE, /* disk, name: from the trash, under this name */
    CLUSTER_DISK_REMOVE,  /* disk: from the trash, for ever; its versions lose their
                             names */
    CLUSTER_DISK_PURGED,  /* disk: only a REMOVED one. Not SHARED: record and versions go,
                             and whatever extents it has are garbage. SHARED: what its
                             head alone reached is freed, and its lists are trimmed; it
                             becomes HEADLESS. HEADLESS and without versions: no extent
                             of it is left; the record goes */
    CLUSTER_DISK_TIDY,    /* disk, epoch, number, finals: only without owner: lists of
                             checkpoints up to number are trimmed */
    CLUSTER_SETTINGS,     /* trash_keep_s */
    CLUSTER_SCHEDULE_SET, /* disk, rules */
    CLUSTER_QUOTA_SET,    /* disk, quota_bytes (0: none) */
    CLUSTER_NODE_SET,     /* store, name (address), new_name (domain), size_bytes, wall_ns
                             -> node id: the node with this store is so from now on; a
                             store that no node has is a new node */
    CLUSTER_NODE_STATE,   /* node, old_flags (expected), flags: DOWN, OUT, DRAINING. One
                             that becomes DOWN has something missing from now on in each
                             group that has another whole member */
    CLUSTER_NODE_GONE,    /* node, force, data_loss. Without force it must be in no group,
                             own no disk, and be in no write set of an extent without
                             final length. With it, it must be DOWN: it is declared lost
                             and leaves its groups. Unless data_loss, nothing may be only
                             there; else, where no whole member is left, all are taken
                             for whole: what only it had is lost */
    CLUSTER_POOL_SET,     /* name, copies, min_copies, flags -> id: made, or changed */
    CLUSTER_DISK_POOL,    /* disk, pool: for extents to come. MOVING, if it is another */
    CLUSTER_GROUP_ADD,    /* pool, members -> id: there are no extents in it, so they are
                             whole */
    CLUSTER_GROUP_SET,    /* group, number (the epoch expected), members -> new epoch:
                             those who are new have everything missing. A whole one leaves
                             only if all that stay are whole; one whole one stays */
    CLUSTER_GROUP_WHOLE,  /* group, node, number (missing_since, as expected): it is
                             whole. Not while an extent of the group without final length
                             was opened without it */
    CLUSTER_TOKEN_ADD,    /* digest, wall_ns (now), until_wall_ns */
    CLUSTER_NODE_JOIN,    /* digest, store, name (address), new_name (domain), size_bytes,
                             flags (WITNESS), wall_ns -> node id: as NODE_SET, but uses
                             the token up. The same store may repeat it.
                             -PLX_EDENIED: no such token, or not any more */
    CLUSTER_AUTHORITY,    /* certificate, key: once */
    CLUSTER_DISK_MOVED,   /* disk, epoch, pool: MOVING no more, if it has this pool */
};
#define CLUSTER_OP_LAST CLUSTER_DISK_MOVED

/* The root of a pending version that a checkpoint passed. */
struct version_root {
    uint64_t version;
    struct map_root root;
};

/*
 * One command, decoded. Only the fields named beside its op count. An epoch below the
 * disk's, or one whose lease was given up, is refused with -PLX_EEPOCH. client and
 * sequence make a repeated command harmless: each client's last answer is kept.
 */
struct cluster_command {
    enum cluster_op op;
    uint64_t client, sequence;  /* client 0: no answer is kept */
    uint64_t disk, version, node;
    struct uid cluster, store;
    uint64_t epoch;
    uint32_t generation;        /* SNAPSHOT: the version's */
    const char *name, *new_name;
    uint64_t size_bytes, wall_ns;
    unsigned flags;
    uint32_t count;
    uint64_t number, flushed, marker, newest_marker;
    uint8_t member_count;
    uint64_t members[REPLICAS_MAX];
    struct cluster_checkpoint checkpoint;
    struct map_root root;
    const struct version_root *roots;
    uint32_t root_count;
    const struct final_length *finals;
    uint32_t final_count;
    uint64_t trimmed;           /* CHECKPOINT: lists up to its are trimmed */
    struct dead_list list;      /* CHECKPOINT: its own; its number is the checkpoint's */
    const uint64_t *versions;
    uint32_t version_count;     /* at most SNAPSHOTS_PER_COMMAND */
    const struct schedule_rule *rules;
    uint32_t rule_count;        /* at most SCHEDULE_RULES_MAX */
    uint64_t quota_bytes, trash_keep_s;
    unsigned old_flags;
    uint32_t pool;
    uint16_t group;
    uint64_t group_epoch;
    uint8_t copies, min_copies;
    bool force;
    bool data_loss;             /* NODE_GONE with force */
    uint8_t digest[TOKEN_DIGEST_BYTES];
    uint64_t until_wall_ns;
    const char *certificate, *key; /* not NUL-terminated */
    uint32_t certificate_len, key_len; /* together at most AUTHORITY_BYTES_MAX */
};

struct cluster_result {
    int code;                   /* 0 or why it was refused; the state did not change */
    uint64_t id;                /* disk, version, first extent, node, pool or group */
    uint64_t epoch;             /* LEASE_TAKE */
    uint64_t index;             /* of the command in the log; not encoded */
    char text[160];             /* for people, if code */
};

struct cluster_state;

/* Memory that runs out ends the process, here and in apply: a replica that refused a
 * command for that would differ from the others for ever. */
struct cluster_state *cluster_state_create(void);
void cluster_state_destroy(struct cluster_state *state);
/* It becomes what `from` is, which ends. Its address stays. */
void cluster_state_replace(struct cluster_state *state, struct cluster_state *from);

/* Appends the encoding to w. Names are at most DISK_NAME_MAX bytes (NULL: empty); lists
 * at most LOG_EXTENTS_MAX, PENDING_VERSIONS_MAX, REPLICAS_MAX, SNAPSHOTS_PER_COMMAND and
 * SCHEDULE_RULES_MAX long. */
void cluster_command_encode(const struct cluster_command *command, struct writer *w);

/* Applies the encoded command with this log index (above the last one). Foreign bytes:
 * a malformed one gives -PLX_EFORMAT in the result (-PLX_ENEWER: an unknown version). A
 * refused command changes nothing but the index, and what its client is answered. */
void cluster_state_apply(struct cluster_state *state, uint64_t index, const void *bytes,
                         size_t len, struct cluster_result *ret_result);

/* The whole state as bytes and back. decode replaces nothing on failure. */
void cluster_state_encode(const struct cluster_state *state, struct writer *w);
int cluster_state_decode(const void *bytes, size_t len, struct cluster_state **ret_state,
                         struct error *err);

/* Is all of it consistent: names, references, generations, order, counts? 0, or
 * -PLX_EDAMAGED with what is wrong in text. For tests, and for `parallax check`. */
int cluster_state_check(const struct cluster_state *state, char *text, size_t cap);

/* --- reading it; pointers are valid until the next apply --- */
uint64_t cluster_state_applied(const struct cluster_state *state);
struct uid cluster_state_uid(const struct cluster_state *state);
uint64_t cluster_state_node_of_store(const struct cluster_state *state, struct uid store);
/* NULL: there is none. Iteration by id; NULL starts. */
const struct cluster_node *cluster_node_by_id(const struct cluster_state *state,
                                              uint64_t id);
const struct cluster_node *cluster_node_next(const struct cluster_state *state,
                                             const struct cluster_node *node);
/* Can it be asked for data now? It has a store, and is neither DOWN nor OUT nor GONE. */
bool cluster_node_is_usable(const struct cluster_node *node);
/* It is taken for down: a lease may be taken from it, and nothing is asked of it. */
bool cluster_node_is_down(const struct cluster_node *node);
const struct cluster_pool *cluster_pool_by_id(const struct cluster_state *state,
                                              uint32_t id);
const struct cluster_pool *cluster_pool_by_name(const struct cluster_state *state,
                                                const char *name);
const struct cluster_pool *cluster_pool_next(const struct cluster_state *state,
                                             const struct cluster_pool *pool);
const struct cluster_group *cluster_group_by_id(const struct cluster_state *state,
                                                uint16_t id);
const struct cluster_group *cluster_group_next(const struct cluster_state *state,
                                               const struct cluster_group *group);
uint32_t cluster_group_count(const struct cluster_state *state);
/* NULL: the node is no member. */
const struct group_member *cluster_group_member(const struct cluster_group *group,
                                                uint64_t node);
/* The extent that this address lies in, if some disk lists it; NULL: none does. ret_disk
 * may be NULL. */
const struct log_extent *cluster_listed_extent(const struct cluster_state *state,
                                               struct address extent, uint64_t *ret_disk);
/* Every extent opened so far has a lower sequence, every later one has not. */
uint64_t cluster_state_next_sequence(const struct cluster_state *state);
/* NULL: the cluster has none. */
const struct cluster_authority *cluster_authority(const struct cluster_state *state);
const struct cluster_token *cluster_token_next(const struct cluster_state *state,
                                               const struct cluster_token *token);
const struct cluster_disk *cluster_disk_by_id(const struct cluster_state *state,
                                              uint64_t id);
const struct cluster_disk *cluster_disk_by_name(const struct cluster_state *state,
                                                const char *name);
const struct cluster_version *cluster_version_by_id(const struct cluster_state *state,
                                                    uint64_t id);
const struct cluster_version *cluster_version_by_name(const struct cluster_state *state,
                                                      uint64_t disk, const char *name);
/* Iteration: NULL starts; disks by name, versions by id. */
const struct cluster_disk *cluster_disk_next(const struct cluster_state *state,
                                             const struct cluster_disk *disk);
const struct cluster_version *
cluster_version_next(const struct cluster_state *state,
                     const struct cluster_version *version);
/* Disks that are hidden because they are TRASHED (the REMOVED ones too): NULL starts. */
const struct cluster_disk *cluster_trash_next(const struct cluster_state *state,
                                              const struct cluster_disk *disk);
/* Versions of a disk by id; children of a version, which are versions and heads. */
const struct cluster_version *
cluster_disk_version_next(const struct cluster_disk *disk,
                          const struct cluster_version *version);
const struct cluster_version *
cluster_child_next(const struct cluster_version *parent,
                   const struct cluster_version *version);
const struct cluster_disk *cluster_head_next(const struct cluster_version *parent,
                                             const struct cluster_disk *disk);
/* Versions without name that are not pending and have at most one child, collapsing ones
 * included: what reclaim may work on. In no order that would outlive a restart. */
const struct cluster_version *
cluster_spare_next(const struct cluster_state *state,
                   const struct cluster_version *version);
uint64_t cluster_spare_count(const struct cluster_state *state);
uint64_t cluster_disk_count(const struct cluster_state *state);
uint64_t cluster_version_count(const struct cluster_state *state);
uint64_t cluster_trash_keep_s(const struct cluster_state *state);

/* What users see: neither being imported, nor in the trash, nor removed. */
bool cluster_disk_is_visible(const struct cluster_disk *disk);
/* Does the root tell all of it? No version pending, and no extent that a replay needs:
 * all have a final length and nothing above what the checkpoint covers. */
bool cluster_disk_is_settled(const struct cluster_disk *disk);
/* The effective bound of the head: what was born later died with its last reference in
 * the head. The generation of the first version above it that is neither a pending one
 * of its own nor collapsing; 0: there is none. */
uint32_t cluster_disk_bound(const struct cluster_state *state,
                            const struct cluster_disk *disk);
/* May COLLAPSE_BEGIN be proposed? Unnamed, not pending, at most one child, no neighbour
 * collapsing, its child not pending. If that is a head: not of a REMOVED disk (the head
 * goes first, DISK_PURGED), and no version collapses against it already. */
bool cluster_version_removable(const struct cluster_state *state,
                               const struct cluster_version *version);
/* Is the next step for a REMOVED disk its head, or all of it, and then DISK_PURGED? Not
 * while a version collapses against its head, or, if it is not SHARED, any version of it
 * or above it. */
bool cluster_disk_purgeable(const struct cluster_state *state,
                            const struct cluster_disk *disk);

/* The root a disk's head starts from: its own, or the first ancestor's that has one.
 * -EAGAIN if that ancestor is pending (*ret_pending tells which); 0 otherwise. */
int cluster_disk_root(const struct cluster_state *state, const struct cluster_disk *disk,
                      struct map_root *ret_root,
                      const struct cluster_version **ret_pending);

/* 1 to DISK_NAME_MAX bytes, each a letter, a digit or one of . _ - + : and the first
 * none of . - + */
bool cluster_name_valid(const char *name);

#endif
