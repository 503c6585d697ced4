/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the scrub keeps: how far it is, and the newest lines of what it found. Losing
 * them to a power cut costs reading something again, so most of it is not synced.
 *
 * What is damaged is as good as not there; the pass that would have gone on is begun
 * anew. A failed write only shows in the store's own trouble: the key-value store takes
 * nothing more then.
 */
#include "cow/scrub.h"

void scrub_state_encode(const struct scrub_state *state, struct writer *w)
{
    unsigned flags = (state->under_way ? SCRUB_UNDER_WAY : 0U) |
                     (state->paused ? SCRUB_PAUSED : 0U);
    struct scrub_state_format format = {
        .magic = le32_of(SCRUB_STATE_MAGIC),
        .version = le16_of(SCRUB_VERSION),
        .flags = le16_of((uint16_t)flags),
        .next = le64_of(state->next.v),
        .done_bytes = le64_of(state->done_bytes),
        .total_bytes = le64_of(state->total_bytes),
        .findings = le64_of(state->findings),
        .started_wall_ns = le64_of(state->started_wall_ns),
        .finished_wall_ns = le64_of(state->finished_wall_ns),
        .counted_wall_ns = le64_of(state->counted_wall_ns),
        .limit_bytes_s = le64_of(state->limit_bytes_s),
        .skipped_count = le32_of(state->skipped_count),
    };
    size_t begin = w->len;

    write_bytes(w, &format, sizeof format);
    for (uint32_t i = 0; i < state->skipped_count; i++)
        write_u64(w, state->skipped[i].v);
    if (!w->bad)
        write_u32(w, crc32c(w->bytes + begin, w->len - begin));
}

/* The last four bytes are the CRC of all before. */
static bool crc_fits(const void *bytes, size_t len)
{
    le32 crc;

    if (len < sizeof crc)
        return false;
    memcpy(&crc, (const uint8_t *)bytes + len - sizeof crc, sizeof crc);
    return crc32c(bytes, len - sizeof crc) == le32_get(crc);
}

int scrub_state_decode(const void *bytes, size_t len, struct scrub_state *ret)
{
    struct scrub_state_format format;
    struct reader r = reader_of(bytes, len);
    struct scrub_state state;

    if (len < sizeof format + sizeof(le32))
        return -PLX_EFORMAT;
    memcpy(&format, read_bytes(&r, sizeof format), sizeof format);
    if (le32_get(format.magic) != SCRUB_STATE_MAGIC)
        return -PLX_EFORMAT;
    if (!crc_fits(bytes, len))
        return -PLX_ECHECKSUM;
    unsigned flags = le16_get(format.flags);
    if (le16_get(format.version) != SCRUB_VERSION ||
        (flags | SCRUB_FLAGS_KNOWN) != SCRUB_FLAGS_KNOWN)
        return -PLX_ENEWER;
    state = (struct scrub_state){
        .under_way = flags & SCRUB_UNDER_WAY,
        .paused = flags & SCRUB_PAUSED,
        .next = {le64_get(format.next)},
        .done_bytes = le64_get(format.done_bytes),
        .total_bytes = le64_get(format.total_bytes),
        .findings = le64_get(format.findings),
        .started_wall_ns = le64_get(format.started_wall_ns),
        .finished_wall_ns = le64_get(format.finished_wall_ns),
        .counted_wall_ns = le64_get(format.counted_wall_ns),
        .limit_bytes_s = le64_get(format.limit_bytes_s),
        .skipped_count = le32_get(format.skipped_count),
    };
    if (state.skipped_count > SCRUB_SKIPPED_MAX ||
        r.left != state.skipped_count * sizeof(le64) + sizeof(le32))
        return -PLX_EFORMAT;
    for (uint32_t i = 0; i < state.skipped_count; i++)
        state.skipped[i].v = read_u64(&r);
    *ret = state;
    return 0;
}

/* Writes what w holds under a key, and releases it. */
static async int put(struct scrub *scrub, const void *key, size_t key_len,
                     struct writer *w, enum kv_durability durability)
{
    struct kv_batch batch;
    bool bad = w->bad;

    kv_batch_init(&batch);
    if (!bad)
        kv_batch_put(&batch, key, key_len, w->bytes, w->len);
    writer_done(w);
    if (bad || batch.bad) {
        kv_batch_done(&batch);
        return -ENOMEM;
    }
    return kv_write_wait(scrub->host->kv, &batch, durability);
}

/* --- lines --- */

static void keep_line(struct scrub *scrub, uint64_t sequence, char *text)
{
    char **slot = &scrub->lines[sequence % SCRUB_LINES_MAX];

    free(*slot);
    *slot = text;
    scrub->line_count = max_u64(scrub->line_count, sequence + 1);
}

static void line_key(uint64_t sequence, uint8_t ret[SCRUB_KEY_BYTES + 1])
{
    memcpy(ret, SCRUB_FINDING_PREFIX, SCRUB_KEY_BYTES);
    ret[SCRUB_KEY_BYTES] = (uint8_t)(sequence % SCRUB_LINES_MAX);
}

static async int store_line(struct scrub *scrub, uint64_t sequence, const char *text)
{
    uint16_t len = (uint16_t)strlen(text);
    struct scrub_finding_format format = {
        .magic = le32_of(SCRUB_FINDING_MAGIC),
        .version = le16_of(SCRUB_VERSION),
        .len = le16_of(len),
        .sequence = le64_of(sequence),
    };
    struct writer w = {0};
    uint8_t key[SCRUB_KEY_BYTES + 1];

    write_bytes(&w, &format, sizeof format);
    write_bytes(&w, text, len);
    if (!w.bad)
        write_u32(&w, crc32c(w.bytes, w.len));
    line_key(sequence, key);
    return put(scrub, key, sizeof key, &w, KV_UNSYNCED);
}

async void scrub_add_line(struct scrub *scrub, const char *text)
{
    uint64_t sequence = scrub->line_count;
    char *copy = strdup(text);

    scrub->state.findings++;
    if (sequence < SCRUB_LINES_MAX)
        log_error(scrub->host->loop, "scrub: %s", text);
    if (sequence == SCRUB_LINES_MAX)
        log_error(scrub->host->loop, "scrub: more was found than is logged here");
    if (!copy)
        return;
    keep_line(scrub, sequence, copy);
    (void)store_line(scrub, sequence, text); /* it is in memory, and in the log */
}

async int scrub_forget_lines(struct scrub *scrub)
{
    struct kv_batch batch;
    uint8_t key[SCRUB_KEY_BYTES + 1];

    kv_batch_init(&batch);
    for (uint32_t i = 0; i < SCRUB_LINES_MAX; i++) {
        if (!scrub->lines[i])
            continue;
        line_key(i, key);
        kv_batch_delete(&batch, key, sizeof key);
        free(take(scrub->lines[i]));
    }
    scrub->line_count = 0;
    if (batch.bad || batch.count == 0) {
        int rc = batch.bad ? -ENOMEM : 0;
        kv_batch_done(&batch);
        return rc;
    }
    return kv_write_wait(scrub->host->kv, &batch, KV_UNSYNCED);
}

/* One line as it was stored; what is no line is passed over. -ENOMEM. */
static int load_line(struct scrub *scrub, const struct kv_pair *pair)
{
    struct scrub_finding_format format;

    if (pair->value_len < sizeof format + sizeof(le32) ||
        !crc_fits(pair->value, pair->value_len))
        return 0;
    memcpy(&format, pair->value, sizeof format);
    size_t len = le16_get(format.len);
    if (le32_get(format.magic) != SCRUB_FINDING_MAGIC ||
        le16_get(format.version) != SCRUB_VERSION || len >= SCRUB_LINE_MAX ||
        len + sizeof format + sizeof(le32) != pair->value_len)
        return 0;
    char *text = strndup((const char *)pair->value + sizeof format, len);
    if (!text)
        return -ENOMEM;
    keep_line(scrub, le64_get(format.sequence), text);
    return 0;
}

static async int load_lines(struct scrub *scrub)
{
    struct kv_page page;
    int rc = kv_scan(scrub->host->kv, SCRUB_FINDING_PREFIX, SCRUB_KEY_BYTES, NULL, 0,
                     SCRUB_LINES_MAX, &page);

    if (rc < 0)
        return rc;
    for (uint32_t i = 0; rc == 0 && i < page.count; i++)
        rc = load_line(scrub, &page.pairs[i]);
    kv_page_done(&page);
    return rc;
}

/* --- the state --- */

async int scrub_load(struct scrub *scrub)
{
    void *value;
    size_t len;
    int rc = kv_get(scrub->host->kv, SCRUB_STATE_KEY, SCRUB_KEY_BYTES, &value, &len);

    if (rc == -ENOENT)
        return 0;
    if (rc == 0) {
        rc = scrub_state_decode(value, len, &scrub->state);
        free(value);
    }
    if (rc == 0)
        rc = load_lines(scrub);
    if (rc < 0 && rc != -ENOMEM) {
        log_warning(scrub->host->loop, "scrub: what it had noted cannot be read: %s",
                    err_text(rc));
        rc = 0;
    }
    return rc;
}

async int scrub_save(struct scrub *scrub, enum kv_durability durability)
{
    struct writer w = {0};

    scrub->saved_ns = loop_now_ns(scrub->host->loop);
    scrub_state_encode(&scrub->state, &w);
    return put(scrub, SCRUB_STATE_KEY, SCRUB_KEY_BYTES, &w, durability);
}
