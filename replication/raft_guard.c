/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What libraft must not be given. It takes much of what a message says for granted, and
 * where that is not so it asserts, or worse, goes on. Here a message is compared with
 * what this node knows; doc/consensus.md lists each case and what would come of it.
 *
 * Happy path: nothing is wrong with the message.
 *
 * A message that cannot be of this cluster's history is dropped, as if it was lost.
 */
#include "replication/raft_internal.h"

/* Two leaders in one term cannot be; libraft asserts it. */
static bool is_second_leader(const struct consensus *c, uint64_t term)
{
    return c->raft.state == RAFT_LEADER && term == c->raft.current_term;
}

/*
 * Entries up to the snapshot are committed, so the leader's are the same, and libraft
 * cannot compare them any more: it would append them once more. What is left of the
 * message follows the snapshot.
 */
static void skip_what_snapshot_has(const struct consensus *c,
                                   struct raft_append_entries *args)
{
    const struct snapshot_meta *snapshot = &c->store.snapshot;
    if (args->prev_log_index >= snapshot->index)
        return;
    uint64_t skip = min_u64(snapshot->index - args->prev_log_index, args->n_entries);
    args->prev_log_index = snapshot->index;
    args->prev_log_term = snapshot->term;
    if (args->n_entries == 0)
        return;
    void *batch = args->entries[0].batch;
    args->n_entries -= (unsigned)skip;
    memmove(args->entries, args->entries + skip,
            args->n_entries * sizeof *args->entries);
    if (args->n_entries == 0) {
        raft_free(batch);
        raft_free(args->entries);
        args->entries = NULL;
    }
}

/*
 * libraft drops entries that another leader replaces, but what it then believes of
 * membership is wrong if one of them was a membership: it looks for the one before in
 * its log, where it may not be any more, or, after a restart, does not look at all.
 */
static bool truncates_membership(const struct consensus *c,
                                 const struct raft_append_entries *args,
                                 uint64_t *ret_index)
{
    const struct config_at *config = raft_store_config(&c->store);
    for (unsigned i = 0; i < args->n_entries; i++) {
        uint64_t index = args->prev_log_index + 1 + i;
        uint64_t term = raft_store_term_of(&c->store, index);
        if (term == 0)
            return false;
        if (term != args->entries[i].term) {
            *ret_index = index;
            return index > c->raft.commit_index && index > c->applied && config != NULL &&
                   config->index >= index;
        }
    }
    return false;
}

static enum verdict guard_append(struct consensus *c, struct raft_append_entries *args,
                                 uint64_t *ret_index)
{
    if (is_second_leader(c, args->term))
        return VERDICT_DROP;
    if (args->term < c->raft.current_term) {
        c->confirm_to = 0; /* libraft's refusal of index 0 looks like consent */
        return VERDICT_TAKE;
    }
    c->confirm_to = args->prev_log_index + args->n_entries;
    skip_what_snapshot_has(c, args);
    return truncates_membership(c, args, ret_index) ? VERDICT_RELOAD : VERDICT_TAKE;
}

/* The machine decodes it first: libraft would store it before anybody knew whether it can
 * be read. What a snapshot holds is committed, whatever libraft does with it then. */
static enum verdict guard_snapshot(struct consensus *c,
                                   struct raft_install_snapshot *args)
{
    struct error err = {0};
    c->confirm_to = args->last_index;
    if (is_second_leader(c, args->term))
        return VERDICT_DROP;
    if (args->last_index <= c->applied)
        return VERDICT_TAKE;
    int rc = c->options.machine.decode(c->options.machine.arg, args->data.base,
                                       args->data.len, &err);
    if (rc != 0) {
        log_error(c->loop, "consensus: the leader's snapshot at %llu: %s",
                  (unsigned long long)args->last_index,
                  err.text[0] != '\0' ? err.text : err_text(rc));
        return VERDICT_DROP;
    }
    c->applied = c->decoded_to = args->last_index;
    trace(c->loop, "consensus_decode", c->applied, c->options.node, 0);
    return VERDICT_TAKE;
}

/*
 * A follower that waits for a snapshot refuses heartbeats. If the log ends at the
 * snapshot libraft takes that for a refusal of the snapshot, which nobody ever sends, and
 * repeats it with every heartbeat. What it cannot match it ignores.
 */
static void guard_append_result(const struct consensus *c, uint64_t from,
                                struct raft_append_entries_result *result)
{
    if (c->raft.state != RAFT_LEADER)
        return;
    for (unsigned i = 0; i < c->raft.configuration.n; i++) {
        const struct raft_progress *progress = &c->raft.leader_state.progress[i];
        if (c->raft.configuration.servers[i].id == from &&
            progress->snapshot_index != 0 &&
            result->rejected == progress->snapshot_index)
            result->rejected = RAFT_NUMBER_MAX;
    }
}

static enum verdict guard_vote_result(const struct consensus *c,
                                      const struct raft_request_vote_result *result)
{
    bool is_impossible = c->raft.state == RAFT_CANDIDATE &&
                         c->raft.candidate_state.in_pre_vote && result->vote_granted &&
                         result->term > c->raft.current_term + 1;
    return is_impossible ? VERDICT_DROP : VERDICT_TAKE;
}

enum verdict raft_guard(struct consensus *c, struct message *message, uint64_t *ret_index)
{
    switch (message->kind) {
    case MESSAGE_APPEND:
        return guard_append(c, &message->raft.append_entries, ret_index);
    case MESSAGE_SNAPSHOT:
        return guard_snapshot(c, &message->raft.install_snapshot);
    case MESSAGE_APPEND_RESULT:
        guard_append_result(c, message->raft.server_id,
                            &message->raft.append_entries_result);
        return VERDICT_TAKE;
    case MESSAGE_VOTE:
        message->raft.request_vote.candidate_id = message->raft.server_id;
        return VERDICT_TAKE;
    case MESSAGE_VOTE_RESULT:
        return guard_vote_result(c, &message->raft.request_vote_result);
    case MESSAGE_TIMEOUT_NOW:
        /* libraft would make the only voter a leader without a new term. */
        return consensus_is_only_voter(c) ? VERDICT_DROP : VERDICT_TAKE;
    default:
        return VERDICT_TAKE;
    }
}
