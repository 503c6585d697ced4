/* SPDX-License-Identifier: Apache-2.0 */
#include "replication/recovery_decide.h"

#include "runtime/plant.h"

static bool is_there(const struct copy_extent *copy)
{
    return copy->state != COPY_RPC_ABSENT;
}

/* It is known to end there: what is here, and not final, is cut. */
static enum recovery_action end_local(const struct copy_extent *local, uint32_t length,
                                      uint32_t *ret_length)
{
    if (!is_there(local) || local->state == COPY_RPC_FINAL || local->length < length)
        return RECOVERY_NOTHING;
    *ret_length = length;
    return RECOVERY_FINALIZE;
}

static enum recovery_action of_final(const struct recovery_facts *f, uint32_t *ret_length)
{
    const struct copy_extent *source = &f->source, *local = &f->local;
    bool has_blocks = is_there(local) && local->length > 0;
    if (f->has_length && f->length != source->length)
        return RECOVERY_CONFLICT;
    if (has_blocks && local->nonce != source->nonce)
        return RECOVERY_CONFLICT;
    if (local->state == COPY_RPC_FINAL) {
        if (local->length != source->length)
            return RECOVERY_CONFLICT;
        bool is_same = local->live_crc == source->live_crc &&
                       (source->has_headers || !local->has_headers);
        return is_same || planted(PLANT_MERGE_FORGOTTEN) ? RECOVERY_NOTHING
                                                         : RECOVERY_MERGE;
    }
    enum recovery_action action = end_local(local, source->length, ret_length);
    if (has_blocks && planted(PLANT_SHORT_COPY_WHOLE))
        return RECOVERY_NOTHING;
    return action != RECOVERY_NOTHING ? action : RECOVERY_COPY;
}

/* What the source has may still have to end. */
static enum recovery_action of_unfinished(const struct recovery_facts *f,
                                          uint32_t *ret_length)
{
    if (f->local.state == COPY_RPC_FINAL)
        return RECOVERY_NOTHING;
    /* Nobody may know any more where it ends, and who has most of it has to say so. */
    bool has_more = is_there(&f->local) && f->local.length >= f->source.length;
    if (!f->has_length && f->is_unsure && has_more)
        return RECOVERY_NOTHING;
    if (!f->has_length) /* it left the list without it; or it never had a block */
        return f->source.length == 0 ? RECOVERY_NOTHING : RECOVERY_WAIT;
    if (f->source.length < f->length)
        return RECOVERY_WAIT;
    *ret_length = f->length;
    return RECOVERY_FINALIZE_THERE;
}

enum recovery_action recovery_decide(const struct recovery_facts *f, uint32_t *ret_length)
{
    bool is_newer = !f->is_opened || (f->is_listed && !f->has_length);
    if (is_newer && planted(PLANT_NEWER_DROPPED) && is_there(&f->local))
        return is_there(&f->source) ? RECOVERY_NOTHING : RECOVERY_DROP;
    if (is_newer)
        return RECOVERY_NOTHING;
    if (!f->is_listed && !f->has_disk)
        return is_there(&f->local) ? RECOVERY_DROP : RECOVERY_NOTHING;
    if (f->has_length && f->length == 0)
        return is_there(&f->local) ? RECOVERY_DROP : RECOVERY_NOTHING;
    if (f->source.state == COPY_RPC_FINAL)
        return of_final(f, ret_length);
    if (is_there(&f->source))
        return of_unfinished(f, ret_length);
    if (f->is_listed)
        return end_local(&f->local, f->length, ret_length);
    if (!is_there(&f->local) || (f->is_unsure && f->local.length > 0))
        return RECOVERY_NOTHING;
    return RECOVERY_ASK_DROP;
}
