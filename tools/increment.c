/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/increment.h"

#include <inttypes.h>

#include "runtime/crc32c.h"

/* --- writing --- */

void increment_write_header(struct increment *incr, const struct increment_header *header,
                            struct increment_header_format *ret)
{
    struct increment_header_format h = {
        .header_bytes = le32_of(sizeof h),
        .cluster = header->cluster,
        .created_wall_ns = le64_of(header->created_wall_ns),
        .base_size_bytes = le64_of(header->base_size_bytes),
        .target_size_bytes = le64_of(header->target_size_bytes),
    };
    memcpy(h.magic, INCREMENT_MAGIC, sizeof h.magic);
    memcpy(h.disk, header->disk, strlen(header->disk));
    memcpy(h.base, header->base, strlen(header->base));
    memcpy(h.target, header->target, strlen(header->target));
    uint32_t crc = crc32c(&h, offsetof(struct increment_header_format, crc));
    h.crc = le32_of(crc);
    *incr = (struct increment){.size_bytes = header->target_size_bytes, .crc = crc};
    *ret = h;
}

static void count_record(struct increment *incr, const struct increment_record *record)
{
    incr->records++;
    incr->end_bytes = record->offset_bytes + record->len_bytes;
    if (record->kind == INCREMENT_DATA)
        incr->data_bytes += record->len_bytes;
    else
        incr->zero_bytes += record->len_bytes;
}

void increment_write_record(struct increment *incr, const struct increment_record *record,
                            struct increment_record_format *ret)
{
    bool is_end = record->kind == INCREMENT_END;
    assert(!incr->ended);
    assert(is_end || record->offset_bytes >= incr->end_bytes);
    struct increment_record_format r = {
        .magic = le32_of(INCREMENT_RECORD_MAGIC),
        .kind = (uint8_t)record->kind,
        .offset_bytes = le64_of(is_end ? incr->records : record->offset_bytes),
        .len_bytes = le64_of(is_end ? incr->data_bytes : record->len_bytes),
        .data_crc = le32_of(record->kind == INCREMENT_DATA ? record->data_crc : 0),
    };
    incr->crc = crc32c_more(incr->crc, &r, offsetof(struct increment_record_format, crc));
    r.crc = le32_of(incr->crc);
    incr->ended = is_end;
    if (!is_end)
        count_record(incr, record);
    *ret = r;
}

/* --- reading --- */

bool increment_is_one(const void *bytes, size_t len)
{
    const size_t magic_len = sizeof((struct increment_header_format *)0)->magic;
    return len >= magic_len && memcmp(bytes, INCREMENT_MAGIC, magic_len) == 0;
}

/* As disks and snapshots are named: no byte of a name is left to believe in. */
static bool read_name(const char *field, char *ret)
{
    size_t len = strnlen(field, INCREMENT_NAME_BYTES);
    if (len == 0 || len > DISK_NAME_MAX || strchr(".-+", field[0]) != NULL)
        return false;
    for (size_t i = 0; i < INCREMENT_NAME_BYTES; i++) {
        char c = field[i];
        bool is_word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       (c >= '0' && c <= '9') || (c != '\0' && strchr("._-+:", c));
        if (i < len ? !is_word : c != '\0')
            return false;
    }
    memcpy(ret, field, len);
    ret[len] = '\0';
    return true;
}

static bool all_zero(const uint8_t *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (bytes[i] != 0)
            return false;
    return true;
}

static bool is_disk_size(uint64_t bytes)
{
    return bytes > 0 && bytes <= DISK_BYTES_MAX && bytes % BLOCK_SIZE == 0;
}

int increment_read_header(struct increment *incr,
                          const struct increment_header_format *bytes,
                          struct increment_header *ret, struct error *err)
{
    uint32_t crc = crc32c(bytes, offsetof(struct increment_header_format, crc));
    if (!increment_is_one(bytes->magic, sizeof bytes->magic))
        return err_set(err, -PLX_EFORMAT, "is not an increment");
    if (crc != le32_get(bytes->crc))
        return err_set(err, -PLX_ECHECKSUM, "is damaged: checksum of the header");
    uint32_t unknown = le32_get(bytes->incompatible) & ~INCREMENT_INCOMPATIBLE_KNOWN;
    if (unknown != 0 || le32_get(bytes->header_bytes) != sizeof *bytes)
        return err_set(err, -PLX_ENEWER, "was written by a newer version (features %#x)",
                       unknown);
    struct increment_header h = {
        .cluster = bytes->cluster,
        .created_wall_ns = le64_get(bytes->created_wall_ns),
        .base_size_bytes = le64_get(bytes->base_size_bytes),
        .target_size_bytes = le64_get(bytes->target_size_bytes),
    };
    if (!read_name(bytes->disk, h.disk) || !read_name(bytes->base, h.base) ||
        !read_name(bytes->target, h.target))
        return err_set(err, -PLX_EFORMAT, "is damaged: a name that is none");
    if (!is_disk_size(h.base_size_bytes) || !is_disk_size(h.target_size_bytes))
        return err_set(err, -PLX_EFORMAT, "is damaged: a size that no disk has");
    *incr = (struct increment){.size_bytes = h.target_size_bytes, .crc = crc};
    *ret = h;
    return 0;
}

static int check_end(const struct increment *incr, const struct increment_record *r,
                     struct error *err)
{
    if (r->offset_bytes == incr->records && r->len_bytes == incr->data_bytes)
        return 0;
    return err_set(err, -PLX_EFORMAT,
                   "is damaged: it has %" PRIu64 " records with %" PRIu64
                   " bytes, its end says %" PRIu64 " and %" PRIu64,
                   incr->records, incr->data_bytes, r->offset_bytes, r->len_bytes);
}

static int check_range(const struct increment *incr, const struct increment_record *r,
                       struct error *err)
{
    uint64_t end;
    uint64_t max = r->kind == INCREMENT_DATA ? INCREMENT_DATA_BYTES_MAX : DISK_BYTES_MAX;
    if (r->len_bytes == 0 || r->len_bytes > max || r->len_bytes % BLOCK_SIZE != 0 ||
        r->offset_bytes % BLOCK_SIZE != 0 ||
        !add_u64(r->offset_bytes, r->len_bytes, &end) || end > incr->size_bytes)
        return err_set(err, -PLX_EFORMAT,
                       "is damaged: record %" PRIu64 " is of %" PRIu64
                       " bytes at %" PRIu64,
                       incr->records, r->len_bytes, r->offset_bytes);
    if (r->offset_bytes < incr->end_bytes)
        return err_set(err, -PLX_EFORMAT, "is damaged: record %" PRIu64 " goes back",
                       incr->records);
    return 0;
}

int increment_read_record(struct increment *incr,
                          const struct increment_record_format *bytes,
                          struct increment_record *ret, struct error *err)
{
    assert(!incr->ended);
    uint32_t crc = crc32c_more(incr->crc, bytes,
                               offsetof(struct increment_record_format, crc));
    struct increment_record r = {
        .kind = bytes->kind,
        .offset_bytes = le64_get(bytes->offset_bytes),
        .len_bytes = le64_get(bytes->len_bytes),
        .data_crc = le32_get(bytes->data_crc),
    };
    if (le32_get(bytes->magic) != INCREMENT_RECORD_MAGIC || crc != le32_get(bytes->crc))
        return err_set(err, -PLX_ECHECKSUM, "is damaged: checksum of record %" PRIu64,
                       incr->records);
    if (bytes->kind < INCREMENT_DATA || bytes->kind > INCREMENT_END ||
        !all_zero(bytes->reserved, sizeof bytes->reserved) ||
        (r.kind != INCREMENT_DATA && r.data_crc != 0))
        return err_set(err, -PLX_EFORMAT, "is damaged: record %" PRIu64 " is of no kind",
                       incr->records);
    int rc = r.kind == INCREMENT_END ? check_end(incr, &r, err)
                                     : check_range(incr, &r, err);
    if (rc < 0)
        return rc;
    incr->crc = crc;
    incr->ended = r.kind == INCREMENT_END;
    if (!incr->ended)
        count_record(incr, &r);
    *ret = r;
    return 0;
}

int increment_check_data(const struct increment_record *record, const void *data,
                         struct error *err)
{
    if (crc32c(data, record->len_bytes) == record->data_crc)
        return 0;
    return err_set(err, -PLX_ECHECKSUM,
                   "is damaged: checksum of the %" PRIu64 " bytes for offset %" PRIu64,
                   record->len_bytes, record->offset_bytes);
}
