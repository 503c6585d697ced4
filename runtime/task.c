/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tasks: stackful coroutines and what they wait on.
 *
 * Happy path: task_start takes an idle task (a stack) and posts its work; the loop runs
 * the work, which switches onto the stack, where task_main calls call->main. A task that
 * parks switches back to the loop; a wake posts its work again. When main returns the
 * stack goes back to the pool and serves the next call, without makecontext.
 *
 *            task_start            loop                 main returns
 *   IDLE ---------------> READY ---------> RUNNING ------------------> IDLE
 *                           ^                 |
 *                 task_wake |                 | task_park
 *                           +---- PARKED <----+
 *
 * What can fail: there is no stack (the limit, or mmap fails). The call then waits in a
 * list and starts when a task ends, or, after mmap failed, when a retry finds memory.
 *
 * On close every task must have ended; a killed simulated process drops them instead.
 *
 * T1  guests <= TASK_STACKS_MAX - TASK_STACKS_SYSTEM and busy <= TASK_STACKS_MAX.
 * T2  At most one task of a thread is RUNNING, and it is `current`.
 * T3  The work of a task is posted exactly while the task is READY.
 */

/* The checked longjmp of glibc takes a jump to another stack for a mistake. */
#undef _FORTIFY_SOURCE

#include "runtime/task.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "runtime/limits.h"
#include "runtime/loop_internal.h"

#if defined(__SANITIZE_ADDRESS__)
#define HAVE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAVE_ASAN 1
#endif
#endif

#ifdef HAVE_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define no_asan __attribute__((no_sanitize_address, noinline))
#else
#define no_asan __attribute__((noinline))
#endif

#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#define HAVE_VALGRIND 1
#endif

/* Frames are several times larger without optimization and with redzones. */
#if defined(HAVE_ASAN) || !defined(__OPTIMIZE__)
#define STACK_BYTES ((size_t)(512 * KIB))
#else
#define STACK_BYTES ((size_t)TASK_STACK_BYTES)
#endif
#define GUARD_BYTES    ((size_t)BLOCK_SIZE)
#define IDLE_TASKS_MAX 32U /* stacks kept beyond need */
#define RETRY_NS       (10 * NS_PER_MS)

enum task_state { TASK_IDLE, TASK_READY, TASK_RUNNING, TASK_PARKED };

struct task {
    struct work work; /* switches to it */
    enum task_state state;
    bool is_fresh;      /* its stack has not been entered */
    bool is_system;
    bool wake_pending;  /* woken while not parked */
    uint32_t no_suspend;
    struct task_call *call; /* until main starts */
    const char *name;
    struct task_pool *pool;
    jmp_buf env;
    uint8_t *mapping;   /* guard page, then the stack */
    void *fake_stack;   /* ASan's, while switched away */
    unsigned valgrind_id;
    LIST_ENTRY(task) link; /* in pool->idle or pool->busy */
};

LIST_HEAD(task_list, task);

struct task_pool {
    struct loop *loop;
    struct task_list idle, busy;
    uint32_t idle_count, busy_count, guest_count;
    struct task_call_list waiting_system, waiting_guest;
    struct timer retry;
    jmp_buf loop_env;       /* where the loop entered the running task */
    const void *loop_stack; /* ASan: its bounds */
    size_t loop_stack_bytes;
    void *loop_fake_stack;
};

static _Thread_local struct task *current;

/* --- stacks --- */

static uint8_t *stack_of(const struct task *task)
{
    return task->mapping + GUARD_BYTES;
}

static struct task *task_create(struct task_pool *pool)
{
    struct task *task = calloc(1, sizeof *task);
    if (task == NULL)
        return NULL;
    task->mapping = mmap(NULL, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (task->mapping == MAP_FAILED)
        goto fail_task;
    if (mprotect(task->mapping, GUARD_BYTES, PROT_NONE) != 0)
        goto fail_mapping;
#ifdef HAVE_VALGRIND
    task->valgrind_id =
        VALGRIND_STACK_REGISTER(stack_of(task), stack_of(task) + STACK_BYTES);
#endif
    task->pool = pool;
    task->is_fresh = true;
    return task;
fail_mapping:
    munmap(task->mapping, GUARD_BYTES + STACK_BYTES);
fail_task:
    free(task);
    return NULL;
}

static void task_destroy(struct task *task)
{
#ifdef HAVE_VALGRIND
    VALGRIND_STACK_DEREGISTER(task->valgrind_id);
#endif
#ifdef HAVE_ASAN
    /* The addresses will be mapped again for something else. */
    __asan_unpoison_memory_region(stack_of(task), STACK_BYTES);
#endif
    munmap(task->mapping, GUARD_BYTES + STACK_BYTES);
    free(task);
}

/* --- switching; nothing here may keep anything in an ASan fake frame --- */

/* The loop's side of a switch is about to be left, or the task's. */
static inline void asan_leave(void **fake_stack, const void *bottom, size_t size_bytes)
{
#ifdef HAVE_ASAN
    __sanitizer_start_switch_fiber(fake_stack, bottom, size_bytes);
#else
    (void)fake_stack, (void)bottom, (void)size_bytes;
#endif
}

static inline void asan_arrive(void *fake_stack, const void **ret_bottom,
                               size_t *ret_size_bytes)
{
#ifdef HAVE_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, ret_bottom, ret_size_bytes);
#else
    (void)fake_stack, (void)ret_bottom, (void)ret_size_bytes;
#endif
}

/* Goes back to the loop; returns when the loop comes again. */
static no_asan void switch_to_loop(struct task *task)
{
    struct task_pool *pool = task->pool;
    /* The fake frames of a task that ended are released. */
    bool ended = task->state == TASK_IDLE;
    asan_leave(ended ? NULL : &task->fake_stack, pool->loop_stack,
               pool->loop_stack_bytes);
    if (ended)
        task->fake_stack = NULL;
    if (_setjmp(task->env) == 0)
        _longjmp(pool->loop_env, 1);
    task = current; /* the same, but not from before _setjmp */
    asan_arrive(task->fake_stack, &task->pool->loop_stack,
                &task->pool->loop_stack_bytes);
}

static void task_run(struct task *task)
{
    struct task_call *call = task->call;
    task->call = NULL;
    call->main(call); /* call may be gone */
    assert(task->state == TASK_RUNNING && task->no_suspend == 0);
    task->state = TASK_IDLE;
}

/* The outermost function of every stack. */
static no_asan void task_main(void)
{
    struct task *task = current;
    asan_arrive(NULL, &task->pool->loop_stack, &task->pool->loop_stack_bytes);
    for (;;) {
        task_run(current);
        switch_to_loop(current);
    }
}

/* The first time: the only switches that change the signal mask, by a system call. */
static no_asan void enter_fresh(struct task *task)
{
    ucontext_t context;
    if (getcontext(&context) != 0)
        abort();
    context.uc_link = NULL;
    context.uc_stack.ss_sp = stack_of(task);
    context.uc_stack.ss_size = STACK_BYTES;
    task->is_fresh = false;
    makecontext(&context, task_main, 0);
    setcontext(&context);
    abort();
}

static no_asan void switch_to_task(struct task *task)
{
    struct task_pool *pool = task->pool;
    asan_leave(&pool->loop_fake_stack, stack_of(task), STACK_BYTES);
    if (_setjmp(pool->loop_env) == 0) {
        if (task->is_fresh)
            enter_fresh(task);
        _longjmp(task->env, 1);
    }
    asan_arrive(current->pool->loop_fake_stack, NULL, NULL);
}

/* --- the pool --- */

static void task_step(struct work *work);
static void start_waiting(struct task_pool *pool);

static void retry(struct timer *timer)
{
    start_waiting(container_of(timer, struct task_pool, retry));
}

struct task_pool *task_pool_create(struct loop *loop)
{
    static_assert(TASK_STACKS_SYSTEM < TASK_STACKS_MAX, "guests get some stacks");
    struct task_pool *pool = calloc(1, sizeof *pool);
    if (pool == NULL)
        return NULL;
    pool->loop = loop;
    pool->retry.fire = retry;
    LIST_INIT(&pool->idle);
    LIST_INIT(&pool->busy);
    STAILQ_INIT(&pool->waiting_system);
    STAILQ_INIT(&pool->waiting_guest);
    return pool;
}

static void destroy_all(struct task_list *list)
{
    struct task *task;
    while ((task = LIST_FIRST(list)) != NULL) {
        LIST_REMOVE(task, link);
        task_destroy(task);
    }
}

void task_pool_destroy(struct task_pool *pool)
{
    if (pool == NULL)
        return;
    assert(pool->busy_count == 0);
    assert(STAILQ_EMPTY(&pool->waiting_system) && STAILQ_EMPTY(&pool->waiting_guest));
    timer_stop(pool->loop, &pool->retry);
    destroy_all(&pool->idle);
    free(pool);
}

void task_pool_abandon(struct task_pool *pool)
{
    assert(current == NULL || current->pool != pool);
    struct task *task;
    LIST_FOREACH(task, &pool->busy, link)
        loop_post_cancel(pool->loop, &task->work);
    timer_stop(pool->loop, &pool->retry);
    destroy_all(&pool->busy);
    pool->busy_count = 0;
    pool->guest_count = 0;
    STAILQ_INIT(&pool->waiting_system);
    STAILQ_INIT(&pool->waiting_guest);
}

static bool stack_allowed(const struct task_pool *pool, bool is_system)
{
    if (pool->busy_count >= TASK_STACKS_MAX) /* T1 */
        return false;
    return is_system || pool->guest_count < TASK_STACKS_MAX - TASK_STACKS_SYSTEM;
}

/* False: no memory. */
static bool start_now(struct task_pool *pool, struct task_call *call)
{
    struct task *task = LIST_FIRST(&pool->idle);
    if (task != NULL) {
        LIST_REMOVE(task, link);
        pool->idle_count--;
    } else if ((task = task_create(pool)) == NULL) {
        return false;
    }
    task->work = (struct work){.run = task_step};
    task->call = call;
    task->name = call->name;
    task->is_system = call->system;
    task->wake_pending = false;
    task->state = TASK_READY;
    LIST_INSERT_HEAD(&pool->busy, task, link);
    pool->busy_count++;
    pool->guest_count += !call->system;
    loop_post(pool->loop, &task->work);
    return true;
}

static bool start_first(struct task_pool *pool, struct task_call_list *waiting)
{
    struct task_call *call = STAILQ_FIRST(waiting);
    if (call == NULL || !stack_allowed(pool, call->system))
        return false;
    STAILQ_REMOVE_HEAD(waiting, link);
    if (start_now(pool, call))
        return true;
    STAILQ_INSERT_HEAD(waiting, call, link);
    timer_start(pool->loop, &pool->retry, RETRY_NS);
    return false;
}

static void start_waiting(struct task_pool *pool)
{
    while (start_first(pool, &pool->waiting_system))
        ;
    while (start_first(pool, &pool->waiting_guest))
        ;
}

void task_start(struct loop *loop, struct task_call *call)
{
    struct task_pool *pool = loop->tasks;
    struct task_call_list *waiting =
        call->system ? &pool->waiting_system : &pool->waiting_guest;
    bool none_before = STAILQ_EMPTY(waiting);
    STAILQ_INSERT_TAIL(waiting, call, link);
    if (none_before)
        start_first(pool, waiting);
}

/* Many stacks at once are rare: their memory goes back, a few are kept warm. */
static void task_ended(struct task *task)
{
    struct task_pool *pool = task->pool;
    LIST_REMOVE(task, link);
    pool->busy_count--;
    pool->guest_count -= !task->is_system;
    if (pool->idle_count < IDLE_TASKS_MAX) {
        LIST_INSERT_HEAD(&pool->idle, task, link);
        pool->idle_count++;
    } else {
        task_destroy(task);
    }
    start_waiting(pool);
}

static void task_step(struct work *work)
{
    struct task *task = container_of(work, struct task, work);
    assert(current == NULL); /* T2 */
    assert(task->state == TASK_READY);
    task->state = TASK_RUNNING;
    current = task;
    switch_to_task(task);
    task = current;
    current = NULL;
    if (task->state == TASK_IDLE)
        task_ended(task);
}

/* --- the task's own calls --- */

/* A compiler may keep a thread-local's address across a switch; harmless here, as a
 * task never changes thread. */
struct task *task_current(void)
{
    return current;
}

const char *task_name(const struct task *task)
{
    return task->name;
}

void task_park(void)
{
    struct task *task = current;
    assert(task != NULL && "only a task can wait");
    assert(task->no_suspend == 0);
    if (task->wake_pending) {
        task->wake_pending = false;
        return;
    }
    task->state = TASK_PARKED;
    switch_to_loop(task);
}

void task_wake(struct task *task)
{
    switch (task->state) {
    case TASK_PARKED:
        task->state = TASK_READY;
        loop_post(task->pool->loop, &task->work); /* T3 */
        break;
    case TASK_RUNNING:
        task->wake_pending = true;
        break;
    case TASK_READY: /* it is about to look */
        break;
    case TASK_IDLE:
        assert(task->state != TASK_IDLE); /* it has ended */
        break;
    }
}

void task_yield(void)
{
    struct task *task = current;
    assert(task != NULL && "only a task can wait");
    assert(task->no_suspend == 0);
    task->state = TASK_READY;
    loop_post(task->pool->loop, &task->work); /* T3 */
    switch_to_loop(task);
}

struct nap {
    struct timer timer;
    struct task *task;
};

static void nap_over(struct timer *timer)
{
    task_wake(container_of(timer, struct nap, timer)->task);
}

void task_sleep_ns(uint64_t duration_ns)
{
    struct nap nap = {.timer.fire = nap_over, .task = current};
    assert(nap.task != NULL && "only a task can wait");
    timer_start(nap.task->pool->loop, &nap.timer, duration_ns);
    /* Somebody else's wake does not end it. */
    while (nap.timer.armed)
        task_park();
}

struct outing {
    struct work work;
    struct task *task;
    void (*fn)(void *arg);
    void *arg;
    bool is_over;
};

static void outing_run(struct work *work)
{
    struct outing *outing = container_of(work, struct outing, work);
    outing->fn(outing->arg);
    outing->is_over = true;
    task_wake(outing->task);
}

void task_outside(void (*fn)(void *arg), void *arg)
{
    struct outing outing = {
        .work.run = outing_run, .task = current, .fn = fn, .arg = arg};
    assert(outing.task != NULL && "only a task can wait");
    loop_post(outing.task->pool->loop, &outing.work);
    while (!outing.is_over)
        task_park();
}

void task_no_suspend_begin(void)
{
    if (current != NULL)
        current->no_suspend++;
}

void task_no_suspend_end(void)
{
    if (current == NULL)
        return;
    assert(current->no_suspend > 0);
    current->no_suspend--;
}

/* --- waiting --- */

/* On the stack of the task that waits. */
struct waiter {
    struct task *task;
    bool is_woken; /* and out of the list */
    TAILQ_ENTRY(waiter) link;
};

void waitlist_init(struct waitlist *list)
{
    TAILQ_INIT(&list->waiters);
}

bool waitlist_empty(const struct waitlist *list)
{
    return TAILQ_EMPTY(&list->waiters);
}

void waitlist_wait(struct waitlist *list)
{
    struct waiter waiter = {.task = current};
    assert(waiter.task != NULL && "only a task can wait");
    TAILQ_INSERT_TAIL(&list->waiters, &waiter, link);
    /* Somebody else's wake does not end it: the list still points here. */
    while (!waiter.is_woken)
        task_park();
}

void waitlist_wake_one(struct waitlist *list)
{
    struct waiter *waiter = TAILQ_FIRST(&list->waiters);
    if (waiter == NULL)
        return;
    TAILQ_REMOVE(&list->waiters, waiter, link);
    waiter->is_woken = true;
    task_wake(waiter->task);
}

void waitlist_wake_all(struct waitlist *list)
{
    while (!waitlist_empty(list))
        waitlist_wake_one(list);
}

void event_init(struct event *event)
{
    event->is_set = false;
    waitlist_init(&event->waiting);
}

void event_set(struct event *event)
{
    event->is_set = true;
    waitlist_wake_all(&event->waiting);
}

void event_wait(struct event *event)
{
    if (!event->is_set)
        waitlist_wait(&event->waiting);
}

void mutex_init(struct mutex *mutex)
{
    mutex->holder = NULL;
    waitlist_init(&mutex->waiting);
}

void mutex_lock(struct mutex *mutex)
{
    assert(current != NULL && mutex->holder != current);
    if (mutex_trylock(mutex))
        return;
    waitlist_wait(&mutex->waiting);
    assert(mutex->holder == current);
}

bool mutex_trylock(struct mutex *mutex)
{
    assert(current != NULL);
    if (mutex->holder != NULL)
        return false;
    assert(waitlist_empty(&mutex->waiting));
    mutex->holder = current;
    return true;
}

/* Handed to the first that waits, so nobody can slip in between. */
void mutex_unlock(struct mutex *mutex)
{
    assert(mutex->holder != NULL && mutex->holder == current);
    struct waiter *next = TAILQ_FIRST(&mutex->waiting.waiters);
    mutex->holder = next == NULL ? NULL : next->task;
    waitlist_wake_one(&mutex->waiting);
}
