/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Takes snapshots by the clock and removes old ones. A timer looks at every disk that
 * has rules, at least once a minute as long as there is one; schedule_plan.c decides what
 * each rule wants. What was done is to be seen in the snapshots' own names, so nothing
 * is kept anywhere else, and a restart changes nothing.
 *
 * A disk for which something fails is left alone for some minutes, and tried again; the
 * log has one line when that begins and one when it ends. Disks in the trash are passed
 * over. A snapshot that would equal the one before it, because the disk was not written
 * since, is left out.
 *
 * On close the snapshot in progress is waited for.
 */
#include "cow/schedule.h"

#include "cow/disk_internal.h"

/* What is remembered of one rule of one disk. */
struct rule_memory {
    uint32_t every_s;     /* whose it is; 0: none */
    uint64_t handled_s;   /* wall clock */
    uint64_t handled_ns;  /* the loop's clock */
};

struct scheduled {        /* a disk */
    uint64_t id;
    bool found;           /* in the last look: it still has rules */
    bool failing;
    uint64_t retry_ns;    /* not before that, if failing */
    uint64_t next_s;      /* nothing is due before, */
    uint64_t looked_s;    /* unless the clock was set back to before this; 0: not yet */
    struct rule_memory rules[SCHEDULE_RULES_MAX];
    RB_ENTRY(scheduled) node;
};

RB_HEAD(scheduled_tree, scheduled);

struct scheduler {
    struct host *host;
    struct scheduled_tree disks;
    struct timer timer;
    struct task_call task;
    bool running, again, closing;
    struct waitlist over;
};

static uint64_t wall_s(const struct host *host)
{
    return loop_wall_ns(host->loop) / NS_PER_S;
}

/* --- the disks that have rules --- */

static int scheduled_compare(const struct scheduled *a, const struct scheduled *b)
{
    return a->id < b->id ? -1 : a->id > b->id;
}

RB_GENERATE_INTERNAL(scheduled_tree, scheduled, node, scheduled_compare,
                     static attr_unused)

static struct scheduled *find(struct scheduler *scheduler, uint64_t id)
{
    struct scheduled key = {.id = id};

    return RB_FIND(scheduled_tree, &scheduler->disks, &key);
}

static struct scheduled *find_or_make(struct scheduler *scheduler, uint64_t id)
{
    struct scheduled *disk = find(scheduler, id);

    if (disk || !(disk = calloc(1, sizeof *disk)))
        return disk; /* without memory at the next look */
    disk->id = id;
    RB_INSERT(scheduled_tree, &scheduler->disks, disk);
    return disk;
}

/* And they are this host's business. */
static bool has_rules(const struct host *host, const struct cluster_disk *disk)
{
    return disk->rule_count > 0 && cluster_disk_is_visible(disk) &&
           host_answers_for(host, disk);
}

/* Brings the list up to date with the cluster state. */
static void refresh(struct scheduler *scheduler)
{
    const struct cluster_state *state = cluster_state(scheduler->host->cluster);
    const struct cluster_disk *disk = NULL;
    struct scheduled *at, *next;

    RB_FOREACH (at, scheduled_tree, &scheduler->disks)
        at->found = false;
    while ((disk = cluster_disk_next(state, disk))) {
        if (has_rules(scheduler->host, disk) && (at = find_or_make(scheduler, disk->id)))
            at->found = true;
    }
    RB_FOREACH_SAFE (at, scheduled_tree, &scheduler->disks, next) {
        if (at->found)
            continue;
        RB_REMOVE(scheduled_tree, &scheduler->disks, at);
        free(at);
    }
}

static struct rule_memory *memory_of(struct scheduled *disk, uint32_t every_s)
{
    struct rule_memory *spare = &disk->rules[0];

    for (uint32_t i = 0; i < SCHEDULE_RULES_MAX; i++) {
        if (disk->rules[i].every_s == every_s)
            return &disk->rules[i];
        /* One of a rule that was taken away is the one that was not touched longest. */
        if (disk->rules[i].handled_ns < spare->handled_ns)
            spare = &disk->rules[i];
    }
    *spare = (struct rule_memory){.every_s = every_s};
    return spare;
}

/* --- one rule --- */

/* Names of the disk's snapshots that a rule may have made, by age; freed by the caller
 * in one piece. */
static int list_names(const struct cluster_disk *disk, char *(**ret_names),
                      uint32_t *ret_count)
{
    const struct cluster_version *version = NULL;
    size_t room = disk->snapshot_count * (sizeof(char *) + SCHEDULE_NAME_MAX);
    char **names = malloc(room + 1);
    char *text = (char *)(names + disk->snapshot_count);
    uint32_t count = 0;

    if (!names)
        return -ENOMEM;
    while ((version = cluster_disk_version_next(disk, version))) {
        size_t len = strlen(version->name);
        if (len == 0 || len >= SCHEDULE_NAME_MAX || count == disk->snapshot_count)
            continue;
        names[count++] = memcpy(text, version->name, len + 1);
        text += SCHEDULE_NAME_MAX;
    }
    *ret_names = names;
    *ret_count = count;
    return 0;
}

/* True if the disk is surely as this snapshot of it has it. */
static bool is_unchanged(struct host *host, const struct cluster_disk *disk,
                         const char *snapshot)
{
    const struct cluster_state *state = cluster_state(host->cluster);
    const struct cluster_version *version =
        cluster_version_by_name(state, disk->id, snapshot);
    const struct disk *open = disk_find(host, disk->id, 0);
    struct map_root root;
    uint64_t pending;

    if (!version || version->pending || version->size_bytes != disk->size_bytes)
        return false;
    if (open && (open->state != DISK_OPEN || open->change_count > 0 ||
                 layers_bytes(open) > 0))
        return false;
    if (!open && (disk->owner || !cluster_disk_is_settled(disk)))
        return false;
    return disk_base_root(state, disk, &root, &pending) == 0 &&
           address_equal(root.address, version->root.address);
}

/* The newest snapshot of the rule, or NULL. */
static const char *newest_of(const struct schedule_facts *facts)
{
    uint64_t time_s;

    for (uint32_t i = facts->name_count; i-- > 0;)
        if (schedule_parse(facts->names[i], facts->every_s, &time_s))
            return facts->names[i];
    return NULL;
}

static async int make(struct host *host, const char *disk_name, uint32_t every_s,
                      uint64_t now_s, struct error *err)
{
    char name[SCHEDULE_NAME_MAX];

    schedule_name(every_s, now_s, name);
    int rc = snapshot_create(host, disk_name, name, err);
    return rc == -PLX_EEXISTS ? 0 : rc; /* of this second: as good */
}

static async int remove_old(struct host *host, const char *disk_name,
                            const struct schedule_facts *facts,
                            const struct schedule_decision *decision, struct error *err)
{
    const char *names[SCHEDULE_REMOVES];

    for (uint32_t i = 0; i < decision->remove_count; i++)
        names[i] = facts->names[decision->removes[i]];
    int rc = snapshot_remove(host, disk_name, names, decision->remove_count, err);
    return rc == -PLX_EMISSING ? 0 : rc; /* somebody else removed one: once more, later */
}

/* One step of what the rule wants: a new snapshot, or old ones removed.
 * 1: there may be more to do. */
static async int rule_step(struct host *host, struct scheduled *at,
                           const struct schedule_rule *rule, struct error *err)
{
    const struct cluster_disk *disk =
        cluster_disk_by_id(cluster_state(host->cluster), at->id);
    struct rule_memory *memory = memory_of(at, rule->every_s);
    uint64_t now_ns = loop_now_ns(host->loop);
    cleanup(free_ptr) char **names = NULL;
    char disk_name[DISK_NAME_MAX + 1];
    struct schedule_decision decision;
    struct schedule_facts facts = {
        .every_s = rule->every_s,
        .keep = rule->keep,
        .now_s = wall_s(host),
        .handled_s = memory->handled_s,
        .quiet_s = memory->handled_ns ? (now_ns - memory->handled_ns) / NS_PER_S
                                      : UINT64_MAX,
    };

    if (!disk || !has_rules(host, disk))
        return 0;
    memcpy(disk_name, disk->name, sizeof disk_name);
    int rc = list_names(disk, &names, &facts.name_count);
    if (rc < 0)
        return err_set(err, rc, "disk %s: %s", disk_name, err_text(rc));
    facts.names = (const char *const *)names;
    schedule_decide(&facts, &decision);
    at->next_s = min_u64(at->next_s, decision.next_s);
    if (decision.make) {
        const char *newest = newest_of(&facts);
        if (!newest || !is_unchanged(host, disk, newest))
            rc = make(host, disk_name, rule->every_s, facts.now_s, err);
        if (rc < 0)
            return rc;
        memory->handled_s = facts.now_s;
        memory->handled_ns = now_ns;
        return 1;
    }
    if (decision.remove_count > 0)
        rc = remove_old(host, disk_name, &facts, &decision, err);
    return rc < 0 ? rc : decision.remove_count > 0;
}

/* --- one disk --- */

static async int serve_rules(struct host *host, struct scheduled *at, struct error *err)
{
    const struct cluster_disk *disk =
        cluster_disk_by_id(cluster_state(host->cluster), at->id);
    struct schedule_rule rules[SCHEDULE_RULES_MAX];
    uint32_t count = disk ? disk->rule_count : 0;
    int rc = 0;

    for (uint32_t i = 0; i < count; i++)
        rules[i] = disk->rules[i];
    for (uint32_t i = 0; i < count && rc >= 0; i++) {
        /* The new one, what it makes superfluous, and that nothing is left. */
        for (uint32_t step = 0; step < 3; step++) {
            rc = rule_step(host, at, &rules[i], err);
            if (rc <= 0 || host->scheduler->closing)
                break;
        }
        if (rc > 0) /* more old ones than one turn removes */
            at->next_s = 0;
    }
    return rc;
}

static async void serve(struct host *host, struct scheduled *at)
{
    struct error err = {0};

    at->looked_s = wall_s(host);
    at->next_s = UINT64_MAX;
    int rc = serve_rules(host, at, &err);
    const struct cluster_disk *disk =
        cluster_disk_by_id(cluster_state(host->cluster), at->id);
    if (!disk)
        return;
    if (rc < 0 && !at->failing)
        log_warning(host->loop, "scheduled snapshots: %s; trying again every %u s",
                    err.text, SCHEDULE_RETRY_S);
    if (rc >= 0 && at->failing)
        log_info(host->loop, "disk %s: scheduled snapshots work again", disk->name);
    at->failing = rc < 0;
    at->retry_ns = loop_now_ns(host->loop) + SCHEDULE_RETRY_S * NS_PER_S;
}

static bool is_due(const struct host *host, const struct scheduled *at)
{
    uint64_t now_s = wall_s(host);

    if (at->failing)
        return loop_now_ns(host->loop) >= at->retry_ns;
    return at->looked_s == 0 || now_s < at->looked_s || now_s >= at->next_s;
}

/* --- all of them --- */

static void arm(struct scheduler *scheduler)
{
    uint64_t now_s = wall_s(scheduler->host), wait_s = SCHEDULE_LOOK_S;
    bool is_alone = copies_are_alone(scheduler->host->copies);
    struct scheduled *at;

    /* With others around, disks may come to be this host's business. */
    if (scheduler->closing || (RB_EMPTY(&scheduler->disks) && is_alone))
        return;
    RB_FOREACH (at, scheduled_tree, &scheduler->disks)
        if (!at->failing)
            wait_s = min_u64(wait_s, at->next_s > now_s ? at->next_s - now_s : 1);
    timer_start(scheduler->host->loop, &scheduler->timer, wait_s * NS_PER_S);
}

static async void scheduler_main(struct task_call *call)
{
    struct scheduler *scheduler = container_of(call, struct scheduler, task);
    struct scheduled *at;

    do {
        scheduler->again = false;
        refresh(scheduler);
        /* Only this task adds to the list or takes from it. */
        RB_FOREACH (at, scheduled_tree, &scheduler->disks)
            if (!scheduler->closing && is_due(scheduler->host, at))
                serve(scheduler->host, at);
    } while (scheduler->again && !scheduler->closing);
    scheduler->running = false;
    arm(scheduler);
    waitlist_wake_all(&scheduler->over);
}

static void look(struct scheduler *scheduler)
{
    scheduler->again = true;
    if (scheduler->running || scheduler->closing)
        return;
    scheduler->running = true;
    timer_stop(scheduler->host->loop, &scheduler->timer);
    scheduler->task = (struct task_call){
        .main = scheduler_main, .name = "schedule", .system = true,
    };
    task_start(scheduler->host->loop, &scheduler->task);
}

static void timer_fired(struct timer *timer)
{
    look(container_of(timer, struct scheduler, timer));
}

int scheduler_open(struct host *host, struct error *err)
{
    struct scheduler *scheduler = calloc(1, sizeof *scheduler);

    if (!scheduler)
        return err_set(err, -ENOMEM, "out of memory");
    scheduler->host = host;
    scheduler->timer.fire = timer_fired;
    RB_INIT(&scheduler->disks);
    waitlist_init(&scheduler->over);
    host->scheduler = scheduler;
    refresh(scheduler);
    if (!RB_EMPTY(&scheduler->disks) || !copies_are_alone(host->copies))
        look(scheduler);
    return 0;
}

async void scheduler_close(struct host *host)
{
    struct scheduler *scheduler = host->scheduler;
    struct scheduled *at;

    if (!scheduler)
        return;
    scheduler->closing = true;
    timer_stop(host->loop, &scheduler->timer);
    while (scheduler->running)
        waitlist_wait(&scheduler->over);
    while ((at = RB_ROOT(&scheduler->disks))) {
        RB_REMOVE(scheduled_tree, &scheduler->disks, at);
        free(at);
    }
    free(take(host->scheduler));
}

/* --- the public face --- */

static int check_rules(const struct snapshot_rule *rules, uint32_t count,
                       struct error *err)
{
    if (count > SCHEDULE_RULES_MAX)
        return err_set(err, -EINVAL, "%u rules: at most %u", count, SCHEDULE_RULES_MAX);
    for (uint32_t i = 0; i < count; i++) {
        if (rules[i].every_s == 0 || rules[i].every_s > SCHEDULE_EVERY_MAX_S)
            return err_set(err, -EINVAL, "every %llu s: must be from 1 s to %u days",
                           (unsigned long long)rules[i].every_s,
                           SCHEDULE_EVERY_MAX_S / 86400U);
        if (rules[i].keep == 0 || rules[i].keep > SCHEDULE_KEEP_MAX)
            return err_set(err, -EINVAL, "keep %u: must be from 1 to %u", rules[i].keep,
                           SCHEDULE_KEEP_MAX);
        for (uint32_t j = 0; j < i; j++)
            if (rules[j].every_s == rules[i].every_s)
                return err_set(err, -EINVAL, "two rules for every %llu s",
                               (unsigned long long)rules[i].every_s);
    }
    return 0;
}

async int schedule_set(struct host *host, const char *name,
                       const struct snapshot_rule *rules, uint32_t count,
                       struct error *err)
{
    struct schedule_rule list[SCHEDULE_RULES_MAX];
    struct cluster_command command = {.op = CLUSTER_SCHEDULE_SET, .rules = list};
    struct cluster_result result;
    int rc = check_rules(rules, count, err);

    if (rc < 0)
        return rc;
    const struct cluster_disk *disk = host_find_disk(host, name, err);
    if (!disk)
        return -PLX_EMISSING;
    command.disk = disk->id;
    command.rule_count = count;
    for (uint32_t i = 0; i < count; i++)
        list[i] = (struct schedule_rule){(uint32_t)rules[i].every_s, rules[i].keep};
    rc = host_submit(host, &command, &result, err);
    if (rc < 0)
        return rc;
    struct scheduled *at = find(host->scheduler, command.disk);
    if (at)
        at->looked_s = at->retry_ns = 0; /* by the new rules */
    look(host->scheduler);
    return 0;
}

int schedule_get(struct host *host, const char *name, struct snapshot_rule *ret_rules,
                 uint32_t *ret_count, struct error *err)
{
    const struct cluster_disk *disk = host_find_disk(host, name, err);

    if (!disk)
        return -PLX_EMISSING;
    for (uint32_t i = 0; i < disk->rule_count; i++)
        ret_rules[i] =
            (struct snapshot_rule){disk->rules[i].every_s, disk->rules[i].keep};
    *ret_count = disk->rule_count;
    return 0;
}
