/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the cluster state share:
 *
 *   cluster_command.c     commands as bytes
 *   cluster_state.c       the tables, looking things up, applying one command
 *   cluster_query.c       what follows from the tables
 *   cluster_listed.c      which disk lists an extent
 *   cluster_apply.c       the table of operations; disks and settings
 *   cluster_apply_nodes.c the cluster itself and its nodes
 *   cluster_apply_join.c  tokens, nodes that join by one, the authority
 *   cluster_apply_pools.c pools
 *   cluster_apply_groups.c  groups and who is whole in them
 *   cluster_apply_log.c   leases, extents, cuts, checkpoints, dead lists
 *   cluster_apply_tree.c  snapshots, clones, rollback
 *   cluster_apply_remove.c  versions and disks go away
 *   cluster_snapshot.c    the state as bytes: all of it; disks, versions
 *   cluster_snapshot_nodes.c  nodes, pools, groups, tokens
 *   cluster_check.c       is it consistent?
 *   cluster_check_nodes.c are nodes, pools, groups, tokens?
 */
#ifndef PARALLAX_REPLICATION_CLUSTER_INTERNAL_H
#define PARALLAX_REPLICATION_CLUSTER_INTERNAL_H

#include "replication/cluster_state.h"

/* So that the next generation of any version is still one. */
#define GENERATION_MAX (UINT32_MAX - 1)

RB_HEAD(cluster_disk_ids, cluster_disk);
RB_HEAD(cluster_disk_names, cluster_disk);
RB_HEAD(cluster_version_ids, cluster_version);
RB_HEAD(cluster_version_names, cluster_version);

/* An extent that a disk lists. */
struct cluster_listed {
    struct address extent;
    uint64_t disk;
    RB_ENTRY(cluster_listed) by_extent;
};
RB_HEAD(cluster_listed_tree, cluster_listed);

/* The last command of a client, and what it was answered. */
struct cluster_answer {
    uint64_t client, sequence;
    uint64_t index; /* of the log: the lowest is forgotten first */
    uint64_t id, epoch;
    int code; /* 0, or why it was refused */
};
#define ANSWER_CODE_MAX 65535U /* the largest number of a code */

struct cluster_state {
    uint64_t applied;
    struct uid uid;
    uint64_t created_wall_ns;
    uint64_t next_disk, next_version, next_sequence; /* never reused */
    uint32_t node_count;                             /* 0 until INIT */
    struct cluster_node *nodes;                      /* by id */
    uint32_t pool_count, pool_cap;
    struct cluster_pool *pools; /* by id, from 1 */
    uint32_t group_count, group_cap;
    struct cluster_group *groups; /* by id, from 1 */
    uint32_t token_count;
    struct cluster_token tokens[TOKENS_MAX]; /* oldest first */
    struct cluster_authority authority;      /* NULLs: none */
    struct cluster_disk_ids disks_by_id;
    struct cluster_disk_names disks_by_name;
    struct cluster_version_ids versions_by_id;
    struct cluster_version_names versions_by_name;
    uint64_t disk_count, version_count;
    struct cluster_listed_tree listed; /* derived: extents of all disks' lists */
    uint64_t listed_count;
    uint64_t trash_keep_s;
    struct cluster_version_list spare; /* derived; see cluster_spare_next */
    uint64_t spare_count;
    uint32_t answer_count;
    struct cluster_answer answers[CLUSTER_CLIENTS_MAX]; /* by index */
};

/* --- cluster_command.c --- */

/* What a command may carry beside op, client and sequence. */
#define F_DISK          ((uint64_t)1 << 0)
#define F_VERSION       ((uint64_t)1 << 1)
#define F_NODE          ((uint64_t)1 << 2)
#define F_CLUSTER       ((uint64_t)1 << 3)
#define F_STORE         ((uint64_t)1 << 4)
#define F_EPOCH         ((uint64_t)1 << 5)
#define F_NAME          ((uint64_t)1 << 6)
#define F_NEW_NAME      ((uint64_t)1 << 7)
#define F_SIZE          ((uint64_t)1 << 8)
#define F_WALL          ((uint64_t)1 << 9)
#define F_FLAGS         ((uint64_t)1 << 10)
#define F_COUNT         ((uint64_t)1 << 11)
#define F_GENERATION    ((uint64_t)1 << 12)
#define F_NUMBER        ((uint64_t)1 << 13)
#define F_FLUSHED       ((uint64_t)1 << 14)
#define F_MARKER        ((uint64_t)1 << 15)
#define F_NEWEST_MARKER ((uint64_t)1 << 16)
#define F_MEMBERS       ((uint64_t)1 << 17)
#define F_CHECKPOINT    ((uint64_t)1 << 18)
#define F_ROOT          ((uint64_t)1 << 19)
#define F_ROOTS         ((uint64_t)1 << 20)
#define F_FINALS        ((uint64_t)1 << 21)
#define F_TRIMMED       ((uint64_t)1 << 22)
#define F_QUOTA         ((uint64_t)1 << 23)
#define F_TRASH_KEEP    ((uint64_t)1 << 24)
#define F_LIST          ((uint64_t)1 << 25)
#define F_VERSIONS      ((uint64_t)1 << 26)
#define F_RULES         ((uint64_t)1 << 27)
#define F_OLD_FLAGS     ((uint64_t)1 << 28)
#define F_POOL          ((uint64_t)1 << 29)
#define F_GROUP         ((uint64_t)1 << 30) /* and its epoch */
#define F_COPIES        ((uint64_t)1 << 31) /* and min_copies */
#define F_FORCE         ((uint64_t)1 << 32)
#define F_DIGEST        ((uint64_t)1 << 33)
#define F_UNTIL         ((uint64_t)1 << 34)
#define F_AUTHORITY     ((uint64_t)1 << 35) /* certificate and key */

/* A decoded command and the memory its pointers lead to. */
struct decoded_command {
    struct cluster_command command;
    char name[DISK_NAME_MAX + 1], new_name[DISK_NAME_MAX + 1];
    struct version_root roots[PENDING_VERSIONS_MAX];
    struct final_length finals[LOG_EXTENTS_MAX];
    uint64_t versions[SNAPSHOTS_PER_COMMAND];
    struct schedule_rule rules[SCHEDULE_RULES_MAX];
};

/* 0, -PLX_EFORMAT or -PLX_ENEWER; ret is undefined on failure. */
int cluster_command_decode(const void *bytes, size_t len, struct decoded_command *ret);
/* Who submitted it. False: it is too short. */
bool cluster_command_origin(const void *bytes, size_t len, uint64_t *ret_client,
                            uint64_t *ret_sequence);

/* Also part of snapshots. */
void cluster_root_write(struct writer *w, const struct map_root *root);
struct map_root cluster_root_read(struct reader *r);
void cluster_rules_write(struct writer *w, const struct schedule_rule *rules,
                         uint32_t count);
uint32_t cluster_rules_read(struct reader *r,
                            struct schedule_rule ret_rules[SCHEDULE_RULES_MAX]);

/* --- cluster_apply.c --- */

/* What a command of a disk must have; checked before its handler runs. */
enum lease_need {
    LEASE_NONE,
    LEASE_EPOCH,  /* the disk's epoch, whether held or not */
    LEASE_HELD,   /* the disk's epoch, and the lease is held */
    LEASE_FREE,   /* the disk's epoch, and nobody holds the lease */
    LEASE_TAKING, /* the disk's epoch, and nobody but command->node holds it */
};

struct apply {
    struct cluster_state *state;
    const struct cluster_command *command;
    struct cluster_disk *disk; /* command->disk, where the operation has one */
    struct cluster_result *result;
};

/* Which disks an operation is for. */
enum disk_life {
    LIFE_LIVE = 1, /* or being imported */
    LIFE_TRASHED = 2,
    LIFE_REMOVED = 4,
    LIFE_HEADLESS = 8,
    LIFE_NO_DISK = 16, /* the command has none, or may be without one: 0 */
};

/* Checks every precondition, then changes the state: never the other way round. */
typedef int apply_fn(struct apply *apply);

struct operation {
    const char *name;
    uint64_t fields; /* F_... */
    unsigned lives;  /* enum disk_life */
    enum lease_need lease;
    apply_fn *run;
};

/* NULL: no such operation. */
const struct operation *cluster_operation(unsigned op);
/* Runs a decoded command; returns result->code. */
int cluster_apply(struct cluster_state *state, const struct cluster_command *command,
                  struct cluster_result *result);
/* Puts a text into the result; returns code. */
int apply_refuse(struct apply *apply, int code, const char *fmt, ...) attr_printf(3, 4);
int apply_check_size(struct apply *apply, const char *name, uint64_t size_bytes);
int apply_check_new_disk(struct apply *apply, const char *name);
bool cluster_node_known(const struct cluster_state *state, uint64_t node);
struct cluster_node *cluster_node_find(struct cluster_state *state, uint64_t id);
/* Printable text: address and domain of a node. */
int apply_check_node_text(struct apply *apply);
/* The node with the command's store, made if there is none, with the command's address,
 * domain and capacity. NULL: refused with *ret_code. */
struct cluster_node *apply_node_of_store(struct apply *apply, int *ret_code);
/* Printable ASCII without blanks, so that it can be shown as it is. */
bool cluster_text_is_plain(const char *text);

apply_fn apply_lease_take, apply_lease_close, apply_extent_open, apply_cut;
apply_fn apply_checkpoint;
apply_fn apply_init, apply_node_set, apply_node_state, apply_node_gone;
apply_fn apply_pool_set, apply_disk_pool, apply_disk_moved;
apply_fn apply_group_add, apply_group_set, apply_group_whole;
apply_fn apply_token_add, apply_node_join, apply_authority;
apply_fn apply_snapshot, apply_snapshot_abandon, apply_clone, apply_rollback;
apply_fn apply_snapshot_rm, apply_collapse_begin, apply_collapse_end;
apply_fn apply_disk_trash, apply_disk_restore, apply_disk_remove, apply_disk_purged;
apply_fn apply_disk_tidy;

/* --- cluster_apply_log.c --- */

/* May the command's final lengths be taken? `covers`: what leaves must end there. Returns
 * 0 or a refusal; ret_left: how many extents stay on the list, ret_open: how many of
 * these have no final length. */
int finals_check(struct apply *apply, uint64_t covers, uint32_t *ret_left,
                 uint32_t *ret_open);
/* Takes them, and F; drops extents that leave and cuts that void nothing any more. */
void finals_apply(struct apply *apply);
/* The highest number known to be committed. */
uint64_t disk_known_number(const struct cluster_disk *disk);
/* cluster_disk_is_settled, or a refusal that says what is missing. */
int apply_check_settled(struct apply *apply);

/* --- cluster_apply_join.c --- */

/* Lines of printable ASCII. */
bool cluster_pem_is_plain(const char *text, size_t len);

/* --- cluster_apply_pools.c --- */

/* The pool of the command, `instead` if it names none. NULL: refused, there is no such.
 */
const struct cluster_pool *apply_pool(struct apply *apply, uint32_t instead);
/* Without copies yet. */
struct cluster_pool *cluster_pool_append(struct cluster_state *state, const char *name);
/* The one that INIT makes, and that states without pools get. */
void cluster_default_pool_add(struct cluster_state *state);

/* --- cluster_apply_groups.c --- */

struct cluster_group *cluster_group_find(struct cluster_state *state, uint16_t id);
/* A group without members. */
struct cluster_group *cluster_group_append(struct cluster_state *state, uint32_t pool);
bool log_extent_has(const struct log_extent *extent, uint64_t node);
uint32_t cluster_group_whole_count(const struct cluster_group *group);
/* The node has become DOWN. */
void cluster_groups_node_down(struct cluster_state *state, uint64_t node);
/* The node is lost. */
void cluster_groups_node_lost(struct cluster_state *state, uint64_t node);
/* May the command open extents in its group? */
int apply_check_open_group(struct apply *apply);
/* It did: those left out have something missing now. */
void apply_mark_left_out(struct apply *apply);

/* --- cluster_query.c --- */

/* What a disk in the trash is called: no user can type it. */
void cluster_trash_name(uint64_t disk, char ret_name[DISK_NAME_MAX + 1]);

/* Why COLLAPSE_BEGIN would be refused; NULL: nothing stands in its way. */
const char *cluster_collapse_obstacle(const struct cluster_state *state,
                                      const struct cluster_version *version);

/* --- cluster_listed.c: keeps the index; the disk's own list is the caller's --- */

/* False: it is listed already. */
bool cluster_listed_add(struct cluster_state *state, uint64_t disk,
                        struct address extent);
void cluster_listed_remove(struct cluster_state *state, struct address extent);
/* Takes all extents off the disk's list. */
void cluster_listed_clear(struct cluster_state *state, struct cluster_disk *disk);
void cluster_listed_done(struct cluster_state *state);

/* --- cluster_state.c: changing the tables; these cannot fail --- */

/* calloc, strdup and realloc that end the process when memory is out. */
void *cluster_alloc(size_t size);
char *cluster_copy(const char *string);
void *cluster_grow(void *array, uint32_t *cap, uint32_t need, size_t element_size);

/* A disk or version without any link yet. */
struct cluster_disk *cluster_disk_create(const char *name);
struct cluster_version *cluster_version_create(const char *name);
void cluster_disk_destroy(struct cluster_disk *disk);

/* Into the trees only, without derived counts; false: the id or name is there already. */
bool cluster_disk_insert(struct cluster_state *state, struct cluster_disk *disk);
bool cluster_version_insert(struct cluster_state *state, struct cluster_version *version);
/* Makes the derived counts and lists of tables just filled; false: a reference leads
 * nowhere. */
bool cluster_state_link(struct cluster_state *state);
/* Inserts and links a version whose name is free and whose references are good. */
void cluster_version_add(struct cluster_state *state, struct cluster_version *version);
/* One without name and children. */
void cluster_version_remove(struct cluster_state *state, struct cluster_version *version);
void cluster_version_drop_name(struct cluster_state *state,
                               struct cluster_version *version);
void cluster_version_set_parent(struct cluster_state *state,
                                struct cluster_version *version, uint64_t parent);

void cluster_disk_remove(struct cluster_state *state, struct cluster_disk *disk);
void cluster_disk_set_name(struct cluster_state *state, struct cluster_disk *disk,
                           const char *name);
void cluster_disk_set_parent(struct cluster_state *state, struct cluster_disk *disk,
                             uint64_t parent);
void cluster_version_set_root(struct cluster_state *state,
                              struct cluster_version *version,
                              const struct map_root *root);
struct cluster_disk *cluster_disk_find(const struct cluster_state *state, uint64_t id);
struct cluster_version *cluster_version_find(const struct cluster_state *state,
                                             uint64_t id);
/* What this command of this client was answered, if that is remembered. */
bool cluster_state_answer(const struct cluster_state *state, uint64_t client,
                          uint64_t sequence, struct cluster_result *ret_result);
/* NULL starts; by id. */
const struct cluster_disk *cluster_disk_next_id(const struct cluster_state *state,
                                                const struct cluster_disk *disk);
void cluster_node_append(struct cluster_state *state, const struct cluster_node *node);
/* --- cluster_snapshot.c --- */

/* What stands where programs before consensus had a state, so that they see that a newer
 * one has written it. */
void cluster_state_write_bar(struct writer *w);
bool cluster_state_is_bar(const void *bytes, size_t len);

/* --- cluster_old_log.c --- */

/* Makes a command log of before consensus the beginning of one of consensus. Nothing is
 * done if there is none. */
async int cluster_old_log_convert(struct loop *loop, struct kv *kv, uint64_t node,
                                  struct error *err);
/* Adds the bar. */
void cluster_old_log_bar(struct kv_batch *batch);

/* --- cluster_snapshot_nodes.c --- */

/* A count of things that take at least `least` bytes each: what cannot be there is bad,
 * so that no loop and no table is larger than the bytes that were given. */
uint32_t cluster_count_read(struct reader *r, uint32_t max, size_t least);
void cluster_nodes_write(struct writer *w, const struct cluster_state *state);
void cluster_nodes_read(struct reader *r, struct cluster_state *state, uint32_t version);
/* After disks were read: a state of a version before 3 gets its pool and group. */
void cluster_nodes_upgrade(struct cluster_state *state);

/* --- cluster_check_nodes.c --- */

/* What is wrong with nodes, pools, groups and tokens; false, and a text, if anything. */
bool cluster_check_nodes(const struct cluster_state *state, char *text, size_t cap);

#endif
