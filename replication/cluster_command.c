/* SPDX-License-Identifier: Apache-2.0 */
/* Commands as bytes; doc/format-cluster.md, "Commands". Which fields a command has is in
 * the table of operations, so encoder and decoder cannot disagree on it. */
#include "replication/cluster_internal.h"

#define COMMAND_VERSION        3U
#define COMMAND_VERSION_OLDEST 1U
#define COMMAND_CLIENT_OFFSET  4U /* in every version */

/* What version 1 did not have: fields of operations it had, and operations. */
#define NEW_FIELDS  (F_POOL | F_GROUP)
#define OLD_OP_LAST CLUSTER_NODE_SET

/* Up to here "node gone" with force let data be lost; and its operations. */
#define COMMAND_VERSION_LOSES 2U
#define LOSES_OP_LAST         CLUSTER_AUTHORITY

enum { FORCE = 1, FORCE_DATA_LOSS = 2 };

void cluster_root_write(struct writer *w, const struct map_root *root)
{
    write_u64(w, root->address.v);
    write_u32(w, root->crc);
    write_u32(w, root->generation);
    write_u8(w, root->height);
}

struct map_root cluster_root_read(struct reader *r)
{
    struct map_root root = {.address = {read_u64(r)}};
    root.crc = read_u32(r);
    root.generation = read_u32(r);
    root.height = read_u8(r);
    return root;
}

static void write_name(struct writer *w, const char *name)
{
    assert(name == NULL || strlen(name) <= DISK_NAME_MAX);
    write_string(w, name == NULL ? "" : name);
}

static void write_members(struct writer *w, const struct cluster_command *command)
{
    assert(command->member_count <= REPLICAS_MAX);
    write_u8(w, command->member_count);
    for (unsigned i = 0; i < command->member_count; i++)
        write_u64(w, command->members[i]);
}

static void write_roots(struct writer *w, const struct cluster_command *command)
{
    assert(command->root_count <= PENDING_VERSIONS_MAX);
    write_u16(w, (uint16_t)command->root_count);
    for (uint32_t i = 0; i < command->root_count; i++) {
        write_u64(w, command->roots[i].version);
        cluster_root_write(w, &command->roots[i].root);
    }
}

static void write_finals(struct writer *w, const struct cluster_command *command)
{
    assert(command->final_count <= LOG_EXTENTS_MAX);
    write_u16(w, (uint16_t)command->final_count);
    for (uint32_t i = 0; i < command->final_count; i++) {
        const struct final_length *final = &command->finals[i];
        write_u64(w, final->extent.v);
        write_u32(w, final->length);
        write_u64(w, final->last_number);
        write_u8(w, final->leaves);
    }
}

/* Its number is that of the checkpoint. */
static void write_list(struct writer *w, const struct dead_list *list)
{
    write_u32(w, list->blocks);
    if (list->blocks == 0)
        return;
    write_u64(w, list->head.v);
    write_u32(w, list->crc);
}

static void write_version_ids(struct writer *w, const struct cluster_command *command)
{
    assert(command->version_count <= SNAPSHOTS_PER_COMMAND);
    write_u16(w, (uint16_t)command->version_count);
    for (uint32_t i = 0; i < command->version_count; i++)
        write_u64(w, command->versions[i]);
}

void cluster_rules_write(struct writer *w, const struct schedule_rule *rules,
                         uint32_t count)
{
    assert(count <= SCHEDULE_RULES_MAX);
    write_u8(w, (uint8_t)count);
    for (uint32_t i = 0; i < count; i++) {
        write_u32(w, rules[i].every_s);
        write_u32(w, rules[i].keep);
    }
}

static void write_authority(struct writer *w, const struct cluster_command *command)
{
    assert(command->certificate_len <= AUTHORITY_BYTES_MAX &&
           command->key_len <= AUTHORITY_BYTES_MAX - command->certificate_len);
    write_u16(w, (uint16_t)command->certificate_len);
    write_bytes(w, command->certificate, command->certificate_len);
    write_u16(w, (uint16_t)command->key_len);
    write_bytes(w, command->key, command->key_len);
}

static void write_force(struct writer *w, const struct cluster_command *command)
{
    assert(!command->data_loss || (command->force && command->op == CLUSTER_NODE_GONE));
    write_u8(w, command->data_loss ? FORCE_DATA_LOSS : command->force ? FORCE : 0);
}

/* The numbers and identities that version 1 did not have. */
static void write_newer(struct writer *w, const struct cluster_command *command,
                        uint64_t fields)
{
    if (fields & F_OLD_FLAGS)
        write_u32(w, command->old_flags);
    if (fields & F_POOL)
        write_u32(w, command->pool);
    if (fields & F_GROUP) {
        write_u16(w, command->group);
        write_u64(w, command->group_epoch);
    }
    if (fields & F_COPIES) {
        write_u8(w, command->copies);
        write_u8(w, command->min_copies);
    }
    if (fields & F_FORCE)
        write_force(w, command);
    if (fields & F_DIGEST)
        write_bytes(w, command->digest, sizeof command->digest);
    if (fields & F_UNTIL)
        write_u64(w, command->until_wall_ns);
}

/* The fields that are one number or identity. */
static void write_plain(struct writer *w, const struct cluster_command *command,
                        uint64_t fields)
{
    if (fields & F_DISK)
        write_u64(w, command->disk);
    if (fields & F_VERSION)
        write_u64(w, command->version);
    if (fields & F_NODE)
        write_u64(w, command->node);
    if (fields & F_CLUSTER)
        write_uid(w, command->cluster);
    if (fields & F_STORE)
        write_uid(w, command->store);
    if (fields & F_EPOCH)
        write_u64(w, command->epoch);
    if (fields & F_NAME)
        write_name(w, command->name);
    if (fields & F_NEW_NAME)
        write_name(w, command->new_name);
    if (fields & F_SIZE)
        write_u64(w, command->size_bytes);
    if (fields & F_WALL)
        write_u64(w, command->wall_ns);
    if (fields & F_FLAGS)
        write_u32(w, command->flags);
    if (fields & F_COUNT)
        write_u32(w, command->count);
    if (fields & F_GENERATION)
        write_u32(w, command->generation);
    if (fields & F_NUMBER)
        write_u64(w, command->number);
    if (fields & F_FLUSHED)
        write_u64(w, command->flushed);
    if (fields & F_MARKER)
        write_u64(w, command->marker);
    if (fields & F_NEWEST_MARKER)
        write_u64(w, command->newest_marker);
    if (fields & F_TRIMMED)
        write_u64(w, command->trimmed);
    if (fields & F_QUOTA)
        write_u64(w, command->quota_bytes);
    if (fields & F_TRASH_KEEP)
        write_u64(w, command->trash_keep_s);
    write_newer(w, command, fields);
}

void cluster_command_encode(const struct cluster_command *command, struct writer *w)
{
    const struct operation *operation = cluster_operation(command->op);
    assert(operation != NULL);
    uint64_t fields = operation->fields;
    write_u8(w, COMMAND_VERSION);
    write_u8(w, (uint8_t)command->op);
    write_u16(w, 0);
    write_u64(w, command->client);
    write_u64(w, command->sequence);
    write_plain(w, command, fields);
    if (fields & F_MEMBERS)
        write_members(w, command);
    if (fields & F_CHECKPOINT) {
        write_u64(w, command->checkpoint.number);
        write_u64(w, command->checkpoint.covers);
        write_u64(w, command->checkpoint.last);
    }
    if (fields & F_ROOT)
        cluster_root_write(w, &command->root);
    if (fields & F_ROOTS)
        write_roots(w, command);
    if (fields & F_FINALS)
        write_finals(w, command);
    if (fields & F_LIST)
        write_list(w, &command->list);
    if (fields & F_VERSIONS)
        write_version_ids(w, command);
    if (fields & F_RULES)
        cluster_rules_write(w, command->rules, command->rule_count);
    if (fields & F_AUTHORITY)
        write_authority(w, command);
}

static void read_members(struct reader *r, struct cluster_command *command)
{
    unsigned count = read_u8(r);
    if (count > REPLICAS_MAX) {
        r->bad = true;
        return;
    }
    command->member_count = (uint8_t)count;
    for (unsigned i = 0; i < count; i++)
        command->members[i] = read_u64(r);
}

static void read_roots(struct reader *r, struct decoded_command *ret)
{
    uint32_t count = read_u16(r);
    if (count > PENDING_VERSIONS_MAX) {
        r->bad = true;
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        ret->roots[i].version = read_u64(r);
        ret->roots[i].root = cluster_root_read(r);
    }
    ret->command.roots = ret->roots;
    ret->command.root_count = count;
}

static void read_finals(struct reader *r, struct decoded_command *ret)
{
    uint32_t count = read_u16(r);
    if (count > LOG_EXTENTS_MAX) {
        r->bad = true;
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        struct final_length *final = &ret->finals[i];
        final->extent.v = read_u64(r);
        final->length = read_u32(r);
        final->last_number = read_u64(r);
        uint8_t leaves = read_u8(r);
        r->bad = r->bad || leaves > 1;
        final->leaves = leaves == 1;
    }
    ret->command.finals = ret->finals;
    ret->command.final_count = count;
}

static void read_list(struct reader *r, struct cluster_command *command)
{
    command->list = (struct dead_list){.blocks = read_u32(r)};
    if (command->list.blocks == 0)
        return;
    command->list.checkpoint = command->checkpoint.number;
    command->list.head.v = read_u64(r);
    command->list.crc = read_u32(r);
}

static void read_version_ids(struct reader *r, struct decoded_command *ret)
{
    uint32_t count = read_u16(r);
    if (count > SNAPSHOTS_PER_COMMAND) {
        r->bad = true;
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        ret->versions[i] = read_u64(r);
    ret->command.versions = ret->versions;
    ret->command.version_count = count;
}

uint32_t cluster_rules_read(struct reader *r,
                            struct schedule_rule ret_rules[SCHEDULE_RULES_MAX])
{
    uint32_t count = read_u8(r);
    if (count > SCHEDULE_RULES_MAX)
        r->bad = true;
    for (uint32_t i = 0; i < count && !r->bad; i++) {
        ret_rules[i].every_s = read_u32(r);
        ret_rules[i].keep = read_u32(r);
    }
    return r->bad ? 0 : count;
}

/* The text stays where it is. */
static void read_authority(struct reader *r, struct cluster_command *command)
{
    command->certificate_len = read_u16(r);
    command->certificate = (const char *)read_bytes(r, command->certificate_len);
    command->key_len = read_u16(r);
    command->key = (const char *)read_bytes(r, command->key_len);
    if (command->certificate_len + command->key_len > AUTHORITY_BYTES_MAX)
        r->bad = true;
}

static void read_force(struct reader *r, struct cluster_command *command)
{
    uint8_t force = read_u8(r);
    command->force = force != 0;
    command->data_loss = force == FORCE_DATA_LOSS;
    if (force > FORCE_DATA_LOSS ||
        (command->data_loss && command->op != CLUSTER_NODE_GONE))
        r->bad = true;
}

static void read_newer(struct reader *r, struct cluster_command *command, uint64_t fields)
{
    if (fields & F_OLD_FLAGS)
        command->old_flags = read_u32(r);
    if (fields & F_POOL)
        command->pool = read_u32(r);
    if (fields & F_GROUP) {
        command->group = read_u16(r);
        command->group_epoch = read_u64(r);
    }
    if (fields & F_COPIES) {
        command->copies = read_u8(r);
        command->min_copies = read_u8(r);
    }
    if (fields & F_FORCE)
        read_force(r, command);
    if (fields & F_DIGEST) {
        const uint8_t *digest = read_bytes(r, sizeof command->digest);
        if (digest != NULL)
            memcpy(command->digest, digest, sizeof command->digest);
    }
    if (fields & F_UNTIL)
        command->until_wall_ns = read_u64(r);
}

static void read_plain(struct reader *r, struct decoded_command *ret, uint64_t fields)
{
    struct cluster_command *command = &ret->command;
    if (fields & F_DISK)
        command->disk = read_u64(r);
    if (fields & F_VERSION)
        command->version = read_u64(r);
    if (fields & F_NODE)
        command->node = read_u64(r);
    if (fields & F_CLUSTER)
        command->cluster = read_uid(r);
    if (fields & F_STORE)
        command->store = read_uid(r);
    if (fields & F_EPOCH)
        command->epoch = read_u64(r);
    if (fields & F_NAME)
        read_string(r, ret->name, sizeof ret->name);
    if (fields & F_NEW_NAME)
        read_string(r, ret->new_name, sizeof ret->new_name);
    if (fields & F_SIZE)
        command->size_bytes = read_u64(r);
    if (fields & F_WALL)
        command->wall_ns = read_u64(r);
    if (fields & F_FLAGS)
        command->flags = read_u32(r);
    if (fields & F_COUNT)
        command->count = read_u32(r);
    if (fields & F_GENERATION)
        command->generation = read_u32(r);
    if (fields & F_NUMBER)
        command->number = read_u64(r);
    if (fields & F_FLUSHED)
        command->flushed = read_u64(r);
    if (fields & F_MARKER)
        command->marker = read_u64(r);
    if (fields & F_NEWEST_MARKER)
        command->newest_marker = read_u64(r);
    if (fields & F_TRIMMED)
        command->trimmed = read_u64(r);
    if (fields & F_QUOTA)
        command->quota_bytes = read_u64(r);
    if (fields & F_TRASH_KEEP)
        command->trash_keep_s = read_u64(r);
    read_newer(r, command, fields);
}

bool cluster_command_origin(const void *bytes, size_t len, uint64_t *ret_client,
                            uint64_t *ret_sequence)
{
    struct reader r = reader_of(bytes, len);
    read_bytes(&r, COMMAND_CLIENT_OFFSET);
    uint64_t client = read_u64(&r), sequence = read_u64(&r);
    if (r.bad)
        return false;
    *ret_client = client;
    *ret_sequence = sequence;
    return true;
}

int cluster_command_decode(const void *bytes, size_t len, struct decoded_command *ret)
{
    struct reader r = reader_of(bytes, len);
    struct cluster_command *command = &ret->command;
    *command = (struct cluster_command){.name = ret->name, .new_name = ret->new_name};
    ret->name[0] = ret->new_name[0] = '\0';
    uint8_t version = read_u8(&r);
    if (!r.bad && version > COMMAND_VERSION)
        return -PLX_ENEWER;
    unsigned op = read_u8(&r);
    const struct operation *operation = cluster_operation(op);
    if (read_u16(&r) != 0 || version < COMMAND_VERSION_OLDEST || operation == NULL ||
        (version == COMMAND_VERSION_OLDEST && op > OLD_OP_LAST) ||
        (version <= COMMAND_VERSION_LOSES && op > LOSES_OP_LAST))
        return -PLX_EFORMAT;
    command->op = (enum cluster_op)op;
    command->client = read_u64(&r);
    command->sequence = read_u64(&r);
    uint64_t fields = operation->fields;
    if (version == COMMAND_VERSION_OLDEST)
        fields &= ~NEW_FIELDS;
    read_plain(&r, ret, fields);
    if (version <= COMMAND_VERSION_LOSES) {
        r.bad = r.bad || command->data_loss;
        command->data_loss = command->force && command->op == CLUSTER_NODE_GONE;
    }
    if (fields & F_MEMBERS)
        read_members(&r, command);
    if (fields & F_CHECKPOINT) {
        command->checkpoint.number = read_u64(&r);
        command->checkpoint.covers = read_u64(&r);
        command->checkpoint.last = read_u64(&r);
    }
    if (fields & F_ROOT)
        command->root = cluster_root_read(&r);
    if (fields & F_ROOTS)
        read_roots(&r, ret);
    if (fields & F_FINALS)
        read_finals(&r, ret);
    if (fields & F_LIST)
        read_list(&r, command);
    if (fields & F_VERSIONS)
        read_version_ids(&r, ret);
    if (fields & F_RULES) {
        command->rules = ret->rules;
        command->rule_count = cluster_rules_read(&r, ret->rules);
    }
    if (fields & F_AUTHORITY)
        read_authority(&r, command);
    return r.bad || r.left != 0 ? -PLX_EFORMAT : 0;
}
