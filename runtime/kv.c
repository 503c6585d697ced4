/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all key-value stores share: the encoding of batches, the wait of a task for a
 * write, and pages of pairs.
 *
 * A batch is a row of changes, each: kind (1 byte), key length (1), value length (4),
 * key, value. It never leaves the process.
 */
#include "runtime/kv.h"

#include "runtime/format.h"
#include "runtime/loop_internal.h"

enum { CHANGE_PUT = 1, CHANGE_DELETE = 2 };

struct change_head {
    uint8_t kind;
    uint8_t key_len;
    le32 value_len;
};
static_assert(sizeof(struct change_head) == 6, "packed");

#define BATCH_CAP_FIRST  256U /* bytes */
#define PAGE_CAP_FIRST   16U  /* pairs */
#define PAGE_VALUE_BYTES MIB

void kv_batch_init(struct kv_batch *batch)
{
    *batch = (struct kv_batch){0};
}

void kv_batch_done(struct kv_batch *batch)
{
    free(batch->bytes);
    kv_batch_init(batch);
}

/* Room for n more bytes; NULL and bad when memory is out. */
static uint8_t *batch_extend(struct kv_batch *batch, size_t n)
{
    if (batch->bad)
        return NULL;
    if (batch->cap - batch->len < n) {
        size_t cap = batch->cap == 0 ? BATCH_CAP_FIRST : batch->cap;
        while (cap - batch->len < n)
            cap *= 2;
        uint8_t *bytes = realloc(batch->bytes, cap);
        if (bytes == NULL) {
            batch->bad = true;
            return NULL;
        }
        batch->bytes = bytes;
        batch->cap = cap;
    }
    uint8_t *at = batch->bytes + batch->len;
    batch->len += n;
    return at;
}

static void batch_add(struct kv_batch *batch, uint8_t kind, const void *key,
                      size_t key_len, const void *value, size_t value_len)
{
    assert(key_len >= 1 && key_len <= KV_KEY_MAX);
    assert(value_len <= KV_VALUE_MAX);
    struct change_head head = {
        .kind = kind,
        .key_len = (uint8_t)key_len,
        .value_len = le32_of((uint32_t)value_len),
    };
    uint8_t *at = batch_extend(batch, sizeof head + key_len + value_len);
    if (at == NULL)
        return;
    memcpy(at, &head, sizeof head);
    memcpy(at + sizeof head, key, key_len);
    if (value_len > 0)
        memcpy(at + sizeof head + key_len, value, value_len);
    batch->count++;
}

void kv_batch_put(struct kv_batch *batch, const void *key, size_t key_len,
                  const void *value, size_t value_len)
{
    batch_add(batch, CHANGE_PUT, key, key_len, value, value_len);
}

void kv_batch_delete(struct kv_batch *batch, const void *key, size_t key_len)
{
    batch_add(batch, CHANGE_DELETE, key, key_len, NULL, 0);
}

bool kv_batch_next(const struct kv_batch *batch, size_t *at, struct kv_change *ret)
{
    if (*at == batch->len)
        return false;
    struct change_head head;
    assert(batch->len - *at >= sizeof head);
    memcpy(&head, batch->bytes + *at, sizeof head);
    *ret = (struct kv_change){
        .is_put = head.kind == CHANGE_PUT,
        .key = batch->bytes + *at + sizeof head,
        .key_len = head.key_len,
        .value_len = le32_get(head.value_len),
    };
    ret->value = ret->key + ret->key_len;
    *at += sizeof head + ret->key_len + ret->value_len;
    assert(*at <= batch->len);
    return true;
}

async int kv_open(struct loop *loop, const char *path, bool create, struct kv **ret_kv,
                  struct error *err)
{
    assert(task_current() != NULL);
    return loop->ops->kv_open(loop, path, create, ret_kv, err);
}

async void kv_close(struct kv *kv)
{
    assert(task_current() != NULL);
    kv->ops->close(kv);
}

void kv_submit(struct kv *kv, struct kv_write *write)
{
    assert(write->done != NULL);
    kv->ops->submit(kv, write);
}

struct waiting_write {
    struct kv_write write;
    struct task *task;
    bool over;
};

static void wake_task(struct kv_write *write)
{
    struct waiting_write *w = container_of(write, struct waiting_write, write);
    w->over = true;
    task_wake(w->task);
}

async int kv_write_wait(struct kv *kv, struct kv_batch *batch,
                        enum kv_durability durability)
{
    assert(task_current() != NULL);
    struct waiting_write w = {
        .write = {.batch = *batch, .durability = durability, .done = wake_task},
        .task = task_current(),
    };
    kv_batch_init(batch);
    kv_submit(kv, &w.write);
    while (!w.over)
        task_park();
    return w.write.result;
}

async int kv_get(struct kv *kv, const void *key, size_t key_len, void **ret_value,
                 size_t *ret_len)
{
    assert(task_current() != NULL);
    assert(key_len >= 1 && key_len <= KV_KEY_MAX);
    return kv->ops->get(kv, key, key_len, ret_value, ret_len);
}

async int kv_scan(struct kv *kv, const void *prefix, size_t prefix_len, const void *after,
                  size_t after_len, uint32_t max_pairs, struct kv_page *ret_page)
{
    assert(task_current() != NULL);
    assert(prefix_len <= KV_KEY_MAX && after_len <= KV_KEY_MAX);
    assert(max_pairs > 0);
    return kv->ops->scan(kv, prefix, prefix_len, after, after_len, max_pairs, ret_page);
}

int kv_page_add(struct kv_page *page, const void *key, size_t key_len, const void *value,
                size_t value_len)
{
    assert(key_len <= KV_KEY_MAX);
    /* Grows at each power of two, so the page needs no field for its capacity. */
    bool is_at_step = page->count == 0 || (page->count >= PAGE_CAP_FIRST &&
                                           (page->count & (page->count - 1)) == 0);
    if (is_at_step) {
        size_t cap = page->count == 0 ? PAGE_CAP_FIRST : 2 * (size_t)page->count;
        struct kv_pair *pairs = realloc(page->pairs, cap * sizeof *pairs);
        if (pairs == NULL)
            return -ENOMEM;
        page->pairs = pairs;
    }
    struct kv_pair *pair = &page->pairs[page->count];
    *pair = (struct kv_pair){.key_len = key_len, .value_len = value_len};
    memcpy(pair->key, key, key_len);
    pair->value = malloc(value_len > 0 ? value_len : 1);
    if (pair->value == NULL)
        return -ENOMEM;
    if (value_len > 0)
        memcpy(pair->value, value, value_len);
    page->count++;
    page->value_bytes += value_len;
    return 0;
}

bool kv_page_full(const struct kv_page *page, uint32_t max_pairs)
{
    return page->count >= max_pairs || page->value_bytes >= PAGE_VALUE_BYTES;
}

void kv_page_done(struct kv_page *page)
{
    for (uint32_t i = 0; i < page->count; i++)
        free(page->pairs[i].value);
    free(page->pairs);
    *page = (struct kv_page){0};
}
