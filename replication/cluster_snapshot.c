/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The whole state as bytes; doc/format-cluster.md, "State". Two equal states have equal
 * bytes: every list is in the order of its numbers. Counts that follow from the rest are
 * not stored but counted again, so that they cannot be wrong.
 */
#include "replication/cluster_internal.h"

#define STATE_MAGIC          "PLXSTATE"
#define STATE_VERSION        5U /* groups may be unsure */
#define STATE_VERSION_OLDEST 1U
#define STATE_VERSION_POOLS  3U /* since then there are pools */
#define STATE_FEATURES_KNOWN 0U /* incompatible ones */
#define STATE_FEATURE_MOVED  1U /* there is no state here, but in keys 'r' */
#define STATE_LENGTH_OFFSET  20U
#define STATE_HEADER_BYTES   28U
#define STATE_BAR_BYTES      (STATE_HEADER_BYTES + 4U)

static void write_extent(struct writer *w, const struct log_extent *extent)
{
    write_u64(w, extent->extent.v);
    write_u64(w, extent->epoch);
    write_u8(w, extent->final);
    write_u8(w, extent->member_count);
    for (unsigned i = 0; i < extent->member_count; i++)
        write_u64(w, extent->members[i]);
    if (extent->final) {
        write_u32(w, extent->length);
        write_u64(w, extent->last_number);
    }
}

static void write_lists(struct writer *w, const struct cluster_disk *disk)
{
    write_u16(w, (uint16_t)disk->list_count);
    for (uint32_t i = 0; i < disk->list_count; i++) {
        write_u64(w, disk->lists[i].checkpoint);
        write_u64(w, disk->lists[i].head.v);
        write_u32(w, disk->lists[i].crc);
        write_u32(w, disk->lists[i].blocks);
    }
}

static void write_disk(struct writer *w, const struct cluster_disk *disk)
{
    write_u64(w, disk->id);
    write_string(w, disk->name);
    write_u32(w, disk->flags);
    write_u32(w, disk->pool);
    write_u64(w, disk->size_bytes);
    write_u64(w, disk->created_wall_ns);
    write_u64(w, disk->owner);
    write_u64(w, disk->epoch);
    write_u64(w, disk->head_parent);
    write_u32(w, disk->head_generation);
    write_u8(w, disk->has_root);
    if (disk->has_root)
        cluster_root_write(w, &disk->root);
    write_u64(w, disk->checkpoint.number);
    write_u64(w, disk->checkpoint.covers);
    write_u64(w, disk->checkpoint.last);
    write_u64(w, disk->newest_marker);
    write_u64(w, disk->abandoned_marker);
    write_u64(w, disk->flushed);
    write_u16(w, (uint16_t)disk->cut_count);
    for (uint32_t i = 0; i < disk->cut_count; i++) {
        write_u64(w, disk->cuts[i].epoch);
        write_u64(w, disk->cuts[i].number);
    }
    write_u16(w, (uint16_t)disk->extent_count);
    for (uint32_t i = 0; i < disk->extent_count; i++)
        write_extent(w, &disk->extents[i]);
    write_lists(w, disk);
    write_u64(w, disk->collapsing_version);
    write_u64(w, disk->quota_bytes);
    cluster_rules_write(w, disk->rules, disk->rule_count);
    if (disk->flags & DISK_TRASHED) {
        write_string(w, disk->trash_name);
        write_u64(w, disk->trashed_wall_ns);
    }
}

static void write_version(struct writer *w, const struct cluster_version *version)
{
    write_u64(w, version->id);
    write_u64(w, version->disk);
    write_string(w, version->name);
    write_u64(w, version->parent);
    write_u32(w, version->generation);
    write_u64(w, version->size_bytes);
    write_u64(w, version->created_wall_ns);
    write_u64(w, version->marker);
    write_u64(w, version->marker_epoch);
    write_u8(w, version->pending);
    if (!version->pending)
        cluster_root_write(w, &version->root);
    write_u8(w, version->collapsing);
    if (version->collapsing)
        cluster_root_write(w, &version->against);
}

static void write_tables(struct writer *w, const struct cluster_state *state)
{
    cluster_nodes_write(w, state);
    write_u32(w, (uint32_t)state->disk_count);
    const struct cluster_disk *disk = NULL;
    while ((disk = cluster_disk_next_id(state, disk)) != NULL)
        write_disk(w, disk);
    write_u32(w, (uint32_t)state->version_count);
    const struct cluster_version *version = NULL;
    while ((version = cluster_version_next(state, version)) != NULL)
        write_version(w, version);
    write_u32(w, state->answer_count);
    for (uint32_t i = 0; i < state->answer_count; i++) {
        write_u64(w, state->answers[i].client);
        write_u64(w, state->answers[i].sequence);
        write_u64(w, state->answers[i].index);
        write_u64(w, state->answers[i].id);
        write_u64(w, state->answers[i].epoch);
        write_u32(w, (uint32_t)-state->answers[i].code);
    }
}

void cluster_state_encode(const struct cluster_state *state, struct writer *w)
{
    size_t start = w->len;
    write_bytes(w, STATE_MAGIC, strlen(STATE_MAGIC));
    write_u32(w, STATE_VERSION);
    write_u32(w, 0); /* incompatible features */
    write_u32(w, 0); /* compatible features */
    write_u64(w, 0); /* the length; set below */
    write_u64(w, state->applied);
    write_uid(w, state->uid);
    write_u64(w, state->created_wall_ns);
    write_u64(w, state->next_disk);
    write_u64(w, state->next_version);
    write_u64(w, state->next_sequence);
    write_u64(w, state->trash_keep_s);
    write_tables(w, state);
    if (w->bad)
        return;
    le64 length = le64_of(w->len - start + sizeof(le32));
    memcpy(w->bytes + start + STATE_LENGTH_OFFSET, &length, sizeof length);
    write_u32(w, crc32c(w->bytes + start, w->len - start));
}

void cluster_state_write_bar(struct writer *w)
{
    size_t start = w->len;
    write_bytes(w, STATE_MAGIC, strlen(STATE_MAGIC));
    write_u32(w, STATE_VERSION_POOLS);
    write_u32(w, STATE_FEATURE_MOVED);
    write_u32(w, 0);
    write_u64(w, STATE_BAR_BYTES);
    if (!w->bad)
        write_u32(w, crc32c(w->bytes + start, w->len - start));
}

bool cluster_state_is_bar(const void *bytes, size_t len)
{
    struct writer w = {0};
    cluster_state_write_bar(&w);
    bool is_bar = !w.bad && len == w.len && memcmp(bytes, w.bytes, len) == 0;
    writer_done(&w);
    return is_bar;
}

static bool read_bool(struct reader *r)
{
    uint8_t value = read_u8(r);
    r->bad = r->bad || value > 1;
    return value == 1;
}

static void read_extent(struct reader *r, struct log_extent *extent)
{
    *extent = (struct log_extent){.extent = {read_u64(r)}};
    extent->epoch = read_u64(r);
    extent->final = read_bool(r);
    uint8_t member_count = read_u8(r);
    if (member_count > REPLICAS_MAX)
        r->bad = true;
    if (r->bad)
        return;
    extent->member_count = member_count;
    for (unsigned i = 0; i < member_count; i++)
        extent->members[i] = read_u64(r);
    if (extent->final) {
        extent->length = read_u32(r);
        extent->last_number = read_u64(r);
    }
}

static void read_log(struct reader *r, struct cluster_disk *disk)
{
    uint32_t cut_count = read_u16(r);
    if (cut_count > CUTS_MAX)
        r->bad = true;
    for (uint32_t i = 0; i < cut_count && !r->bad; i++) {
        disk->cuts = cluster_grow(disk->cuts, &disk->cut_cap, i + 1, sizeof *disk->cuts);
        disk->cuts[i].epoch = read_u64(r);
        disk->cuts[i].number = read_u64(r);
        disk->cut_count++;
    }
    uint32_t extent_count = read_u16(r);
    if (extent_count > LOG_EXTENTS_MAX)
        r->bad = true;
    for (uint32_t i = 0; i < extent_count && !r->bad; i++) {
        disk->extents = cluster_grow(disk->extents, &disk->extent_cap, i + 1,
                                     sizeof *disk->extents);
        read_extent(r, &disk->extents[i]);
        disk->extent_count++;
    }
}

static void read_lists(struct reader *r, struct cluster_disk *disk)
{
    uint32_t count = read_u16(r);
    if (count > LISTS_MAX)
        r->bad = true;
    for (uint32_t i = 0; i < count && !r->bad; i++) {
        disk->lists = cluster_grow(disk->lists, &disk->list_cap, i + 1,
                                   sizeof *disk->lists);
        struct dead_list *list = &disk->lists[i];
        list->checkpoint = read_u64(r);
        list->head.v = read_u64(r);
        list->crc = read_u32(r);
        list->blocks = read_u32(r);
        disk->list_count++;
    }
}

static void read_rules(struct reader *r, struct cluster_disk *disk)
{
    struct schedule_rule rules[SCHEDULE_RULES_MAX];
    uint32_t count = cluster_rules_read(r, rules);
    if (count == 0)
        return;
    disk->rules = cluster_alloc(count * sizeof *rules);
    memcpy(disk->rules, rules, count * sizeof *rules);
    disk->rule_count = count;
}

static struct cluster_disk *read_disk(struct reader *r, uint32_t version)
{
    struct cluster_disk *disk = cluster_disk_create("");
    disk->id = read_u64(r);
    read_string(r, disk->name, sizeof disk->name);
    disk->flags = read_u32(r);
    disk->pool = version < STATE_VERSION_POOLS ? DEFAULT_POOL : read_u32(r);
    disk->size_bytes = read_u64(r);
    disk->created_wall_ns = read_u64(r);
    disk->owner = read_u64(r);
    disk->epoch = read_u64(r);
    disk->head_parent = read_u64(r);
    disk->head_generation = read_u32(r);
    disk->has_root = read_bool(r);
    if (disk->has_root)
        disk->root = cluster_root_read(r);
    disk->checkpoint.number = read_u64(r);
    disk->checkpoint.covers = read_u64(r);
    disk->checkpoint.last = read_u64(r);
    disk->newest_marker = read_u64(r);
    disk->abandoned_marker = read_u64(r);
    disk->flushed = read_u64(r);
    read_log(r, disk);
    read_lists(r, disk);
    disk->collapsing_version = read_u64(r);
    disk->quota_bytes = read_u64(r);
    read_rules(r, disk);
    if (disk->flags & DISK_TRASHED) {
        char name[DISK_NAME_MAX + 1] = "";
        read_string(r, name, sizeof name);
        disk->trash_name = cluster_copy(name);
        disk->trashed_wall_ns = read_u64(r);
    }
    return disk;
}

static struct cluster_version *read_version(struct reader *r)
{
    struct cluster_version *version = cluster_version_create("");
    version->id = read_u64(r);
    version->disk = read_u64(r);
    read_string(r, version->name, sizeof version->name);
    version->parent = read_u64(r);
    version->generation = read_u32(r);
    version->size_bytes = read_u64(r);
    version->created_wall_ns = read_u64(r);
    version->marker = read_u64(r);
    version->marker_epoch = read_u64(r);
    version->pending = read_bool(r);
    if (!version->pending)
        version->root = cluster_root_read(r);
    version->collapsing = read_bool(r);
    if (version->collapsing)
        version->against = cluster_root_read(r);
    return version;
}

#define DISK_BYTES    131U /* the least that one of each takes, in any version */
#define VERSION_BYTES 64U
#define ANSWER_BYTES  40U /* of the oldest version */

static void read_disks(struct reader *r, struct cluster_state *state, uint32_t version)
{
    uint32_t count = cluster_count_read(r, CLUSTER_DISKS_MAX, DISK_BYTES);
    uint64_t last = 0;
    for (uint32_t i = 0; i < count && !r->bad; i++) {
        struct cluster_disk *disk = read_disk(r, version);
        r->bad = r->bad || disk->id <= last || !cluster_disk_insert(state, disk);
        if (r->bad) {
            cluster_disk_destroy(disk);
            return;
        }
        last = disk->id;
        for (uint32_t j = 0; j < disk->extent_count && !r->bad; j++)
            r->bad = !cluster_listed_add(state, disk->id, disk->extents[j].extent);
    }
}

static void read_versions(struct reader *r, struct cluster_state *state)
{
    uint32_t count = cluster_count_read(r, CLUSTER_VERSIONS_MAX, VERSION_BYTES);
    uint64_t last = 0;
    for (uint32_t i = 0; i < count && !r->bad; i++) {
        struct cluster_version *version = read_version(r);
        r->bad = r->bad || version->id <= last || !cluster_version_insert(state, version);
        if (r->bad) {
            free(version);
            return;
        }
        last = version->id;
    }
}

static void read_answers(struct reader *r, struct cluster_state *state, uint32_t version)
{
    state->answer_count = cluster_count_read(r, CLUSTER_CLIENTS_MAX, ANSWER_BYTES);
    for (uint32_t i = 0; i < state->answer_count; i++) {
        struct cluster_answer *answer = &state->answers[i];
        answer->client = read_u64(r);
        answer->sequence = read_u64(r);
        answer->index = read_u64(r);
        answer->id = read_u64(r);
        answer->epoch = read_u64(r);
        uint32_t code = version < STATE_VERSION_POOLS ? 0 : read_u32(r);
        answer->code = code <= ANSWER_CODE_MAX ? -(int)code : 0;
        r->bad = r->bad || code > ANSWER_CODE_MAX;
    }
}

/* Everything behind the header. False: these bytes are no state. */
static bool read_body(struct reader *r, struct cluster_state *state, uint32_t version)
{
    state->applied = read_u64(r);
    state->uid = read_uid(r);
    state->created_wall_ns = read_u64(r);
    state->next_disk = read_u64(r);
    state->next_version = read_u64(r);
    state->next_sequence = read_u64(r);
    state->trash_keep_s = read_u64(r);
    cluster_nodes_read(r, state, version);
    read_disks(r, state, version);
    read_versions(r, state);
    read_answers(r, state, version);
    if (!r->bad && version < STATE_VERSION_POOLS)
        cluster_nodes_upgrade(state);
    return !r->bad && r->left == 0 && cluster_state_link(state);
}

static int check_header(const uint8_t *bytes, size_t len, uint32_t *ret_version,
                        struct error *err)
{
    if (len < STATE_HEADER_BYTES + sizeof(le32) ||
        memcmp(bytes, STATE_MAGIC, strlen(STATE_MAGIC)) != 0)
        return err_set(err, -PLX_EFORMAT, "cluster state: not one");
    struct reader r = reader_of(bytes, len);
    read_bytes(&r, strlen(STATE_MAGIC));
    uint32_t version = read_u32(&r);
    uint32_t features = read_u32(&r);
    read_u32(&r); /* compatible features: may be ignored by definition */
    if (version > STATE_VERSION || (features & ~STATE_FEATURES_KNOWN) != 0)
        return err_set(err, -PLX_ENEWER,
                       "cluster state: version %u, features %x: a newer program wrote it",
                       version, features);
    *ret_version = version;
    if (version < STATE_VERSION_OLDEST)
        return err_set(err, -PLX_EFORMAT, "cluster state: version %u", version);
    if (read_u64(&r) != len)
        return err_set(err, -PLX_EDAMAGED, "cluster state: cut short");
    struct reader end = reader_of(bytes + len - sizeof(le32), sizeof(le32));
    if (read_u32(&end) != crc32c(bytes, len - sizeof(le32)))
        return err_set(err, -PLX_EDAMAGED, "cluster state: checksum mismatch");
    return 0;
}

int cluster_state_decode(const void *bytes, size_t len, struct cluster_state **ret_state,
                         struct error *err)
{
    uint32_t version = 0;
    int rc = check_header(bytes, len, &version, err);
    if (rc != 0)
        return rc;
    struct reader r = reader_of((const uint8_t *)bytes + STATE_HEADER_BYTES,
                                len - STATE_HEADER_BYTES - sizeof(le32));
    struct cluster_state *state = cluster_state_create();
    char text[200] = "an entry is malformed";
    rc = -PLX_EDAMAGED;
    if (read_body(&r, state, version))
        rc = cluster_state_check(state, text, sizeof text);
    if (rc != 0) {
        cluster_state_destroy(state);
        return err_set(err, rc, "cluster state: %s", text);
    }
    *ret_state = state;
    return 0;
}
