/* SPDX-License-Identifier: Apache-2.0 */
/* The tables of the cluster state, reading them, and the frame around every command:
 * decode, answer a repeated one from memory, run the others, remember the answer. */
#include <stdio.h>

#include "replication/cluster_internal.h"

static int by_disk_id(const struct cluster_disk *a, const struct cluster_disk *b)
{
    return (a->id > b->id) - (a->id < b->id);
}

static int by_disk_name(const struct cluster_disk *a, const struct cluster_disk *b)
{
    return strcmp(a->name, b->name);
}

static int by_version_id(const struct cluster_version *a, const struct cluster_version *b)
{
    return (a->id > b->id) - (a->id < b->id);
}

static int by_version_name(const struct cluster_version *a,
                           const struct cluster_version *b)
{
    int order = (a->disk > b->disk) - (a->disk < b->disk);
    return order != 0 ? order : strcmp(a->name, b->name);
}

/* RB_GENERATE_STATIC of libbsd needs a word that glibc does not have. */
#define GENERATE(tree, type, field, cmp)                                                 \
    RB_GENERATE_INTERNAL(tree, type, field, cmp, static attr_unused)
GENERATE(cluster_disk_ids, cluster_disk, by_id, by_disk_id)
GENERATE(cluster_disk_names, cluster_disk, by_name, by_disk_name)
GENERATE(cluster_version_ids, cluster_version, by_id, by_version_id)
GENERATE(cluster_version_names, cluster_version, by_name, by_version_name)

/* --- memory --- */

static void *need_memory(void *p)
{
    if (p == NULL) {
        fputs("out of memory in the cluster state\n", stderr);
        abort();
    }
    return p;
}

void *cluster_alloc(size_t size)
{
    return need_memory(calloc(1, size));
}

char *cluster_copy(const char *string)
{
    return need_memory(strdup(string));
}

void *cluster_grow(void *array, uint32_t *cap, uint32_t need, size_t element_size)
{
    if (need <= *cap)
        return array;
    uint32_t more = *cap == 0 ? 2 : *cap * 2;
    if (more < need)
        more = need;
    array = need_memory(reallocarray(array, more, element_size));
    *cap = more;
    return array;
}

struct cluster_disk *cluster_disk_create(const char *name)
{
    struct cluster_disk *disk = cluster_alloc(sizeof *disk);
    snprintf(disk->name, sizeof disk->name, "%s", name);
    TAILQ_INIT(&disk->pending);
    TAILQ_INIT(&disk->versions);
    return disk;
}

struct cluster_version *cluster_version_create(const char *name)
{
    struct cluster_version *version = cluster_alloc(sizeof *version);
    snprintf(version->name, sizeof version->name, "%s", name);
    TAILQ_INIT(&version->children);
    TAILQ_INIT(&version->heads);
    return version;
}

void cluster_disk_destroy(struct cluster_disk *disk)
{
    free(disk->cuts);
    free(disk->extents);
    free(disk->lists);
    free(disk->rules);
    free(disk->trash_name);
    free(disk);
}

struct cluster_state *cluster_state_create(void)
{
    struct cluster_state *state = cluster_alloc(sizeof *state);
    RB_INIT(&state->disks_by_id);
    RB_INIT(&state->disks_by_name);
    RB_INIT(&state->versions_by_id);
    RB_INIT(&state->versions_by_name);
    RB_INIT(&state->listed);
    TAILQ_INIT(&state->spare);
    state->next_disk = state->next_version = state->next_sequence = 1;
    state->trash_keep_s = TRASH_KEEP_DEFAULT_S;
    return state;
}

/* All but the state itself. */
static void release(struct cluster_state *state)
{
    struct cluster_disk *disk, *next_disk;
    RB_FOREACH_SAFE (disk, cluster_disk_ids, &state->disks_by_id, next_disk) {
        RB_REMOVE(cluster_disk_ids, &state->disks_by_id, disk);
        cluster_disk_destroy(disk);
    }
    struct cluster_version *version, *next_version;
    RB_FOREACH_SAFE (version, cluster_version_ids, &state->versions_by_id, next_version) {
        RB_REMOVE(cluster_version_ids, &state->versions_by_id, version);
        free(version);
    }
    cluster_listed_done(state);
    free(state->nodes);
    free(state->pools);
    free(state->groups);
    free(state->authority.certificate);
    free(state->authority.key);
}

void cluster_state_destroy(struct cluster_state *state)
{
    if (state == NULL)
        return;
    release(state);
    free(state);
}

void cluster_state_replace(struct cluster_state *state, struct cluster_state *from)
{
    release(state);
    *state = *from;
    TAILQ_INIT(&state->spare);
    TAILQ_CONCAT(&state->spare, &from->spare, spare_link);
    free(from);
}

/* --- changing the tables --- */

bool cluster_disk_insert(struct cluster_state *state, struct cluster_disk *disk)
{
    if (RB_INSERT(cluster_disk_ids, &state->disks_by_id, disk) != NULL)
        return false;
    if (RB_INSERT(cluster_disk_names, &state->disks_by_name, disk) != NULL) {
        RB_REMOVE(cluster_disk_ids, &state->disks_by_id, disk);
        return false;
    }
    state->disk_count++;
    return true;
}

bool cluster_version_insert(struct cluster_state *state, struct cluster_version *version)
{
    if (RB_INSERT(cluster_version_ids, &state->versions_by_id, version) != NULL)
        return false;
    if (version->name[0] != '\0' &&
        RB_INSERT(cluster_version_names, &state->versions_by_name, version) != NULL) {
        RB_REMOVE(cluster_version_ids, &state->versions_by_id, version);
        return false;
    }
    state->version_count++;
    return true;
}

/* After any change of its name, its children, or whether it is pending. */
static void spare_update(struct cluster_state *state, struct cluster_version *version)
{
    bool spare = version->name[0] == '\0' && !version->pending &&
                 version->child_count <= 1U + planted(PLANT_BRANCH_POINT_LOST);
    if (spare == version->spare)
        return;
    version->spare = spare;
    if (spare) {
        TAILQ_INSERT_TAIL(&state->spare, version, spare_link);
        state->spare_count++;
    } else {
        TAILQ_REMOVE(&state->spare, version, spare_link);
        state->spare_count--;
    }
}

/* False: it has a parent that is not there. */
static bool head_link_in(struct cluster_state *state, struct cluster_disk *disk)
{
    if (disk->head_parent == 0)
        return true;
    struct cluster_version *parent = cluster_version_find(state, disk->head_parent);
    if (parent == NULL)
        return false;
    TAILQ_INSERT_TAIL(&parent->heads, disk, head_link);
    parent->child_count++;
    spare_update(state, parent);
    return true;
}

static void head_link_out(struct cluster_state *state, struct cluster_disk *disk)
{
    if (disk->head_parent == 0)
        return;
    struct cluster_version *parent = cluster_version_find(state, disk->head_parent);
    assert(parent != NULL && parent->child_count > 0);
    TAILQ_REMOVE(&parent->heads, disk, head_link);
    parent->child_count--;
    spare_update(state, parent);
}

static bool parent_link_in(struct cluster_state *state, struct cluster_version *version)
{
    if (version->parent == 0)
        return true;
    struct cluster_version *parent = cluster_version_find(state, version->parent);
    if (parent == NULL)
        return false;
    TAILQ_INSERT_TAIL(&parent->children, version, child_link);
    parent->child_count++;
    spare_update(state, parent);
    return true;
}

static void parent_link_out(struct cluster_state *state, struct cluster_version *version)
{
    if (version->parent == 0)
        return;
    struct cluster_version *parent = cluster_version_find(state, version->parent);
    assert(parent != NULL && parent->child_count > 0);
    TAILQ_REMOVE(&parent->children, version, child_link);
    parent->child_count--;
    spare_update(state, parent);
}

/* Ids of versions rise, so that a disk's are in order; so are markers of pending ones. */
static bool version_link_in(struct cluster_state *state, struct cluster_version *version)
{
    struct cluster_disk *disk = cluster_disk_find(state, version->disk);
    if (disk == NULL || !parent_link_in(state, version))
        return false;
    TAILQ_INSERT_TAIL(&disk->versions, version, disk_link);
    disk->version_count++;
    if (version->name[0] != '\0')
        disk->snapshot_count++;
    if (version->pending) {
        TAILQ_INSERT_TAIL(&disk->pending, version, pending_link);
        disk->pending_count++;
    }
    spare_update(state, version);
    return true;
}

bool cluster_state_link(struct cluster_state *state)
{
    struct cluster_version *version;
    RB_FOREACH (version, cluster_version_ids, &state->versions_by_id) {
        if (!version_link_in(state, version))
            return false;
    }
    struct cluster_disk *disk;
    RB_FOREACH (disk, cluster_disk_ids, &state->disks_by_id) {
        if (!head_link_in(state, disk))
            return false;
    }
    return true;
}

void cluster_version_add(struct cluster_state *state, struct cluster_version *version)
{
    bool fits = cluster_version_insert(state, version) && version_link_in(state, version);
    assert(fits);
}

void cluster_version_remove(struct cluster_state *state, struct cluster_version *version)
{
    struct cluster_disk *disk = cluster_disk_find(state, version->disk);
    assert(version->child_count == 0 && version->name[0] == '\0' && disk != NULL);
    parent_link_out(state, version);
    if (version->pending) {
        TAILQ_REMOVE(&disk->pending, version, pending_link);
        disk->pending_count--;
    }
    if (version->spare) {
        TAILQ_REMOVE(&state->spare, version, spare_link);
        state->spare_count--;
    }
    TAILQ_REMOVE(&disk->versions, version, disk_link);
    disk->version_count--;
    RB_REMOVE(cluster_version_ids, &state->versions_by_id, version);
    state->version_count--;
    free(version);
}

void cluster_version_set_parent(struct cluster_state *state,
                                struct cluster_version *version, uint64_t parent)
{
    parent_link_out(state, version);
    version->parent = parent;
    bool found = parent_link_in(state, version);
    assert(found);
}

void cluster_version_drop_name(struct cluster_state *state,
                               struct cluster_version *version)
{
    struct cluster_disk *disk = cluster_disk_find(state, version->disk);
    if (version->name[0] == '\0')
        return;
    assert(disk != NULL && disk->snapshot_count > 0);
    RB_REMOVE(cluster_version_names, &state->versions_by_name, version);
    version->name[0] = '\0';
    disk->snapshot_count--;
    spare_update(state, version);
}

void cluster_disk_set_parent(struct cluster_state *state, struct cluster_disk *disk,
                             uint64_t parent)
{
    head_link_out(state, disk);
    disk->head_parent = parent;
    bool found = head_link_in(state, disk);
    assert(found);
}

void cluster_disk_remove(struct cluster_state *state, struct cluster_disk *disk)
{
    assert(disk->version_count == 0);
    cluster_listed_clear(state, disk);
    cluster_disk_set_parent(state, disk, 0);
    RB_REMOVE(cluster_disk_ids, &state->disks_by_id, disk);
    RB_REMOVE(cluster_disk_names, &state->disks_by_name, disk);
    state->disk_count--;
    cluster_disk_destroy(disk);
}

void cluster_disk_set_name(struct cluster_state *state, struct cluster_disk *disk,
                           const char *name)
{
    RB_REMOVE(cluster_disk_names, &state->disks_by_name, disk);
    snprintf(disk->name, sizeof disk->name, "%s", name);
    struct cluster_disk *other = RB_INSERT(cluster_disk_names, &state->disks_by_name,
                                           disk);
    assert(other == NULL);
}

void cluster_version_set_root(struct cluster_state *state,
                              struct cluster_version *version,
                              const struct map_root *root)
{
    struct cluster_disk *disk = cluster_disk_find(state, version->disk);
    assert(disk != NULL && version->pending && disk->pending_count > 0);
    TAILQ_REMOVE(&disk->pending, version, pending_link);
    disk->pending_count--;
    version->pending = false;
    version->root = *root;
    spare_update(state, version);
}

void cluster_node_append(struct cluster_state *state, const struct cluster_node *node)
{
    uint32_t cap = state->node_count;
    state->nodes = cluster_grow(state->nodes, &cap, state->node_count + 1,
                                sizeof *state->nodes);
    state->nodes[state->node_count++] = *node;
}

/* --- reading --- */

struct cluster_disk *cluster_disk_find(const struct cluster_state *state, uint64_t id)
{
    struct cluster_disk *disk = RB_ROOT(&state->disks_by_id);
    while (disk != NULL && disk->id != id)
        disk = id < disk->id ? RB_LEFT(disk, by_id) : RB_RIGHT(disk, by_id);
    return disk;
}

struct cluster_version *cluster_version_find(const struct cluster_state *state,
                                             uint64_t id)
{
    struct cluster_version *version = RB_ROOT(&state->versions_by_id);
    while (version != NULL && version->id != id)
        version = id < version->id ? RB_LEFT(version, by_id) : RB_RIGHT(version, by_id);
    return version;
}

const struct cluster_disk *cluster_disk_by_id(const struct cluster_state *state,
                                              uint64_t id)
{
    return cluster_disk_find(state, id);
}

const struct cluster_version *cluster_version_by_id(const struct cluster_state *state,
                                                    uint64_t id)
{
    return cluster_version_find(state, id);
}

const struct cluster_disk *cluster_disk_by_name(const struct cluster_state *state,
                                                const char *name)
{
    const struct cluster_disk *disk = RB_ROOT(&state->disks_by_name);
    while (disk != NULL) {
        int order = strcmp(name, disk->name);
        if (order == 0)
            return disk;
        disk = order < 0 ? RB_LEFT(disk, by_name) : RB_RIGHT(disk, by_name);
    }
    return NULL;
}

const struct cluster_version *cluster_version_by_name(const struct cluster_state *state,
                                                      uint64_t disk, const char *name)
{
    const struct cluster_version *version = RB_ROOT(&state->versions_by_name);
    while (version != NULL) {
        int order = (disk > version->disk) - (disk < version->disk);
        if (order == 0)
            order = strcmp(name, version->name);
        if (order == 0)
            return version;
        version = order < 0 ? RB_LEFT(version, by_name) : RB_RIGHT(version, by_name);
    }
    return NULL;
}

/* The macros of <bsd/sys/tree.h> take no const pointers; nothing here writes. */
#define UNCONST(type, p) ((type *)(uintptr_t)(p))

const struct cluster_disk *cluster_disk_next(const struct cluster_state *state,
                                             const struct cluster_disk *disk)
{
    struct cluster_disk_names *names = UNCONST(struct cluster_disk_names,
                                               &state->disks_by_name);
    if (disk == NULL)
        return RB_MIN(cluster_disk_names, names);
    return RB_NEXT(cluster_disk_names, names, UNCONST(struct cluster_disk, disk));
}

const struct cluster_disk *cluster_disk_next_id(const struct cluster_state *state,
                                                const struct cluster_disk *disk)
{
    struct cluster_disk_ids *ids = UNCONST(struct cluster_disk_ids, &state->disks_by_id);
    if (disk == NULL)
        return RB_MIN(cluster_disk_ids, ids);
    return RB_NEXT(cluster_disk_ids, ids, UNCONST(struct cluster_disk, disk));
}

const struct cluster_version *cluster_version_next(const struct cluster_state *state,
                                                   const struct cluster_version *version)
{
    struct cluster_version_ids *ids = UNCONST(struct cluster_version_ids,
                                              &state->versions_by_id);
    if (version == NULL)
        return RB_MIN(cluster_version_ids, ids);
    return RB_NEXT(cluster_version_ids, ids, UNCONST(struct cluster_version, version));
}

uint64_t cluster_state_applied(const struct cluster_state *state)
{
    return state->applied;
}

struct uid cluster_state_uid(const struct cluster_state *state)
{
    return state->uid;
}

uint64_t cluster_state_node_of_store(const struct cluster_state *state, struct uid store)
{
    for (uint32_t i = 0; i < state->node_count; i++) {
        if (uid_equal(state->nodes[i].store, store))
            return state->nodes[i].id;
    }
    return 0;
}

uint64_t cluster_state_next_sequence(const struct cluster_state *state)
{
    return state->next_sequence;
}

uint64_t cluster_disk_count(const struct cluster_state *state)
{
    return state->disk_count;
}

uint64_t cluster_version_count(const struct cluster_state *state)
{
    return state->version_count;
}

uint64_t cluster_spare_count(const struct cluster_state *state)
{
    return state->spare_count;
}

uint64_t cluster_trash_keep_s(const struct cluster_state *state)
{
    return state->trash_keep_s;
}

int cluster_disk_root(const struct cluster_state *state, const struct cluster_disk *disk,
                      struct map_root *ret_root,
                      const struct cluster_version **ret_pending)
{
    if (disk->has_root) {
        *ret_root = disk->root;
        return 0;
    }
    if (disk->head_parent == 0) {
        *ret_root = (struct map_root){.address = ADDRESS_NULL};
        return 0;
    }
    const struct cluster_version *parent = cluster_version_find(state, disk->head_parent);
    assert(parent != NULL);
    if (parent->pending) {
        *ret_pending = parent;
        return -EAGAIN;
    }
    *ret_root = parent->root;
    return 0;
}

static bool name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           (c != '\0' && strchr("._-+:", c) != NULL);
}

bool cluster_name_valid(const char *name)
{
    size_t len = strnlen(name, DISK_NAME_MAX + 1);
    if (len == 0 || len > DISK_NAME_MAX || strchr(".-+", name[0]) != NULL)
        return false;
    for (size_t i = 0; i < len; i++) {
        if (!name_char(name[i]))
            return false;
    }
    return true;
}

/* --- applying --- */

static const struct cluster_answer *answer_find(const struct cluster_state *state,
                                                uint64_t client)
{
    for (uint32_t i = 0; i < state->answer_count; i++) {
        if (state->answers[i].client == client)
            return &state->answers[i];
    }
    return NULL;
}

/* The newest answer goes to the end; so the first is the least recently used. */
static void answer_keep(struct cluster_state *state, const struct cluster_answer *answer)
{
    struct cluster_answer *answers = state->answers;
    struct cluster_answer *leaving = answers;
    while (leaving < answers + state->answer_count && leaving->client != answer->client)
        leaving++;
    if (leaving == answers + state->answer_count)
        leaving = NULL;
    if (leaving == NULL && state->answer_count == CLUSTER_CLIENTS_MAX)
        leaving = answers;
    if (leaving != NULL) {
        const struct cluster_answer *end = answers + state->answer_count;
        memmove(leaving, leaving + 1, (size_t)(end - leaving - 1) * sizeof *answers);
        state->answer_count--;
    }
    answers[state->answer_count++] = *answer;
}

static int answer_repeat(const struct cluster_answer *answer,
                         struct cluster_result *result)
{
    result->id = answer->id;
    result->epoch = answer->epoch;
    if (answer->code != 0)
        snprintf(result->text, sizeof result->text, "refused before: %s",
                 err_text(answer->code));
    return answer->code;
}

static int apply_decoded(struct cluster_state *state,
                         const struct cluster_command *command,
                         struct cluster_result *result)
{
    const struct cluster_answer *answer = NULL;
    if (command->client != 0)
        answer = answer_find(state, command->client);
    if (answer != NULL && answer->sequence == command->sequence)
        return answer_repeat(answer, result);
    if (answer != NULL && answer->sequence > command->sequence) {
        snprintf(result->text, sizeof result->text,
                 "command %llu of a client came after its command %llu",
                 (unsigned long long)command->sequence,
                 (unsigned long long)answer->sequence);
        return -PLX_EPRECONDITION;
    }
    int rc = cluster_apply(state, command, result);
    if (command->client != 0 && state->node_count != 0) {
        answer_keep(state, &(struct cluster_answer){.client = command->client,
                                                    .sequence = command->sequence,
                                                    .index = state->applied,
                                                    .id = rc == 0 ? result->id : 0,
                                                    .epoch = rc == 0 ? result->epoch : 0,
                                                    .code = rc});
    }
    return rc;
}

bool cluster_state_answer(const struct cluster_state *state, uint64_t client,
                          uint64_t sequence, struct cluster_result *ret_result)
{
    const struct cluster_answer *answer = answer_find(state, client);
    if (answer == NULL || answer->sequence != sequence)
        return false;
    *ret_result = (struct cluster_result){.index = answer->index};
    ret_result->code = answer_repeat(answer, ret_result);
    return true;
}

void cluster_state_apply(struct cluster_state *state, uint64_t index, const void *bytes,
                         size_t len, struct cluster_result *ret_result)
{
    assert(index > state->applied);
    struct cluster_result result = {.code = 0};
    struct decoded_command decoded;
    state->applied = index;
    result.code = cluster_command_decode(bytes, len, &decoded);
    if (result.code == 0)
        result.code = apply_decoded(state, &decoded.command, &result);
    else
        snprintf(result.text, sizeof result.text, "command %llu: %s",
                 (unsigned long long)index, err_text(result.code));
    if (result.code != 0)
        result.id = result.epoch = 0;
    *ret_result = result;
}
