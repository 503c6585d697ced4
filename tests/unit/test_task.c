/* SPDX-License-Identifier: Apache-2.0 */
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "runtime/limits.h"
#include "runtime/loop_internal.h"
#include "tests/unit/check.h"

#if defined(__SANITIZE_ADDRESS__)
#define HAVE_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAVE_ASAN
#endif
#endif

/* Every test runs its tasks until the last of them stops the loop. */
struct job {
    struct task_call call;
    struct loop *loop;
    struct world *world;
    int number;
};

struct world {
    struct loop *loop;
    struct job jobs[2 * TASK_STACKS_MAX];
    int job_count, running, running_max, ended;
    int order[2 * TASK_STACKS_MAX];
    int order_len;
    struct waitlist list;
    struct event event;
    struct mutex mutex;
    struct task *tasks[4];
    uint64_t count;
};

static void begin(struct world *w)
{
    memset(w, 0, sizeof *w);
    w->loop = loop_create();
    waitlist_init(&w->list);
    event_init(&w->event);
    mutex_init(&w->mutex);
}

static void add(struct world *w, void (*main)(struct task_call *call), bool system)
{
    struct job *job = &w->jobs[w->job_count];
    *job = (struct job){
        .call = {.main = main, .name = "test", .system = system},
        .loop = w->loop,
        .world = w,
        .number = w->job_count++,
    };
    task_start(w->loop, &job->call);
    CHECK(task_current() == NULL);
}

static struct job *job_of(struct task_call *call)
{
    return container_of(call, struct job, call);
}

static void note(struct job *job)
{
    job->world->order[job->world->order_len++] = job->number;
}

static void end(struct job *job)
{
    if (++job->world->ended == job->world->job_count)
        loop_stop(job->loop);
}

static void run(struct world *w)
{
    loop_run(w->loop);
    CHECK_EQ(w->ended, w->job_count);
    loop_destroy(w->loop);
}

static void check_order(const struct world *w, const int *want, int len)
{
    CHECK_EQ(w->order_len, len);
    for (int i = 0; i < len; i++)
        CHECK_EQ(w->order[i], want[i]);
}

/* --- switching --- */

#define SWITCHES 1000000U

static void ping(struct task_call *call)
{
    struct job *job = job_of(call);
    struct world *w = job->world;
    w->tasks[job->number] = task_current();
    CHECK_STR(task_name(task_current()), "test");
    task_yield(); /* until both are there */
    struct task *other = w->tasks[1 - job->number];
    while (w->count < SWITCHES) {
        w->count++;
        task_wake(other);
        task_park();
    }
    if (w->ended == 0) /* the other is parked still */
        task_wake(other);
    end(job);
}

static void test_ping_pong(struct world *w)
{
    begin(w);
    add(w, ping, false);
    add(w, ping, false);
    struct timespec start, stop;
    clock_gettime(CLOCK_MONOTONIC, &start);
    run(w);
    clock_gettime(CLOCK_MONOTONIC, &stop);
    double ns = (double)(stop.tv_sec - start.tv_sec) * 1e9 +
                (double)(stop.tv_nsec - start.tv_nsec);
    printf("%.0f ns for a wake and a switch\n", ns / SWITCHES);
}

static void wake_first(struct task_call *call)
{
    task_wake(task_current());
    task_wake(task_current()); /* two are one */
    task_park();               /* returns at once */
    struct job *job = job_of(call);
    job->world->tasks[0] = task_current();
    task_park(); /* until the second task wakes it */
    note(job);
    end(job);
}

static void wake_second(struct task_call *call)
{
    struct job *job = job_of(call);
    note(job);
    task_wake(job->world->tasks[0]);
    end(job);
}

static void test_early_wake(struct world *w)
{
    begin(w);
    add(w, wake_first, false);
    add(w, wake_second, false);
    run(w);
    check_order(w, (const int[]){1, 0}, 2);
}

/* The call may be freed as soon as main runs. */
static struct loop *freed_loop;

static void free_own_call(struct task_call *call)
{
    free(job_of(call));
    task_yield();
    loop_stop(freed_loop);
}

static void test_call_is_freed(void)
{
    freed_loop = loop_create();
    struct job *job = calloc(1, sizeof *job);
    job->call = (struct task_call){.main = free_own_call, .name = "free"};
    task_start(freed_loop, &job->call);
    loop_run(freed_loop);
    loop_destroy(freed_loop);
}

/* --- more tasks than stacks --- */

static void crowd(struct task_call *call)
{
    struct job *job = job_of(call);
    struct world *w = job->world;
    note(job);
    w->running++;
    if (w->running > w->running_max)
        w->running_max = w->running;
    task_yield();
    task_sleep_ns(NS_PER_MS);
    w->running--;
    end(job);
}

static void test_more_than_stacks(struct world *w)
{
    begin(w);
    int guests = (int)TASK_STACKS_MAX + 100;
    for (int i = 0; i < guests; i++)
        add(w, crowd, false);
    /* They do not wait for the guests before them. */
    for (int i = 0; i < 10; i++)
        add(w, crowd, true);
    run(w);
    int guests_first = (int)(TASK_STACKS_MAX - TASK_STACKS_SYSTEM);
    CHECK_EQ(w->running_max, guests_first + 10);
    CHECK_EQ(w->order_len, guests + 10);
    for (int i = 0; i < guests_first; i++)
        CHECK_EQ(w->order[i], i);
    for (int i = 0; i < 10; i++)
        CHECK_EQ(w->order[guests_first + i], guests + i);
    for (int i = guests_first; i < guests; i++)
        CHECK_EQ(w->order[i + 10], i);
}

/* System tasks alone may have every stack. */
static void test_system_takes_all(struct world *w)
{
    begin(w);
    for (int i = 0; i < (int)TASK_STACKS_MAX + 20; i++)
        add(w, crowd, true);
    run(w);
    CHECK_EQ(w->running_max, TASK_STACKS_MAX);
}

/* --- a process that ends where it stands --- */

static void park_forever(struct task_call *call)
{
    note(job_of(call));
    task_park();
    CHECK(false);
}

static void test_abandon(struct world *w)
{
    begin(w);
    int guests = (int)(TASK_STACKS_MAX - TASK_STACKS_SYSTEM);
    for (int i = 0; i < guests + 1; i++) /* the last has no stack */
        add(w, park_forever, false);
    loop_run_ready(w->loop, 10); /* some are parked, the others ready */
    CHECK_EQ(w->order_len, 10);
    task_pool_abandon(w->loop->tasks);
    CHECK(!loop_run_ready(w->loop, UINT32_MAX));
    loop_destroy(w->loop);
}

/* --- no memory for a stack --- */

static bool no_memory;
static int failures;

/* Stands before libc's; a stack needs it for its guard page. */
int mprotect(void *address, size_t len, int protection)
{
    if (no_memory) {
        failures++;
        errno = ENOMEM;
        return -1;
    }
    return (int)syscall(SYS_mprotect, address, len, protection);
}

static void memory_is_back(struct timer *timer)
{
    (void)timer;
    no_memory = false;
}

static void note_and_end(struct task_call *call)
{
    note(job_of(call));
    end(job_of(call));
}

/* The task starts when memory is there again, though nothing else ends before. */
static void test_no_memory(struct world *w)
{
    begin(w);
    no_memory = true;
    struct timer timer = {.fire = memory_is_back};
    timer_start(w->loop, &timer, 15 * NS_PER_MS);
    add(w, note_and_end, false);
    add(w, note_and_end, false);
    run(w);
    CHECK(failures >= 1);
    check_order(w, (const int[]){0, 1}, 2);
}

/* --- waiting --- */

static void sleeper(struct task_call *call)
{
    struct job *job = job_of(call);
    uint64_t delay_ns = (uint64_t)(30 - 10 * job->number) * NS_PER_MS;
    uint64_t start_ns = loop_now_ns(job->loop);
    task_wake(task_current()); /* must not shorten the sleep */
    task_sleep_ns(delay_ns);
    CHECK(loop_now_ns(job->loop) - start_ns >= delay_ns);
    note(job);
    end(job);
}

static void test_sleep(struct world *w)
{
    begin(w);
    for (int i = 0; i < 3; i++)
        add(w, sleeper, false);
    run(w);
    check_order(w, (const int[]){2, 1, 0}, 3);
}

static void list_waiter(struct task_call *call)
{
    struct job *job = job_of(call);
    task_wake(task_current()); /* not the wake that is waited for */
    waitlist_wait(&job->world->list);
    note(job);
    end(job);
}

static void list_waker(struct task_call *call)
{
    struct job *job = job_of(call);
    struct world *w = job->world;
    task_yield();
    CHECK(!waitlist_empty(&w->list));
    waitlist_wake_one(&w->list);
    task_yield();
    CHECK_EQ(w->order_len, 1);
    waitlist_wake_all(&w->list);
    CHECK_EQ(w->order_len, 1); /* never from inside */
    CHECK(waitlist_empty(&w->list));
    waitlist_wake_one(&w->list);
    end(job);
}

static void test_waitlist(struct world *w)
{
    begin(w);
    for (int i = 0; i < 4; i++)
        add(w, list_waiter, false);
    add(w, list_waker, false);
    run(w);
    check_order(w, (const int[]){0, 1, 2, 3}, 4);
}

static void event_waiter(struct task_call *call)
{
    struct job *job = job_of(call);
    event_wait(&job->world->event);
    CHECK(job->world->event.is_set);
    event_wait(&job->world->event); /* at once */
    note(job);
    end(job);
}

static void event_setter(struct task_call *call)
{
    struct job *job = job_of(call);
    CHECK_EQ(job->world->order_len, 0);
    event_set(&job->world->event);
    event_set(&job->world->event);
    end(job);
}

static void test_event(struct world *w)
{
    begin(w);
    add(w, event_waiter, false);
    add(w, event_waiter, false);
    add(w, event_setter, false);
    add(w, event_waiter, false);
    run(w);
    /* The late one did not have to wait. */
    CHECK_EQ(w->order_len, 3);
}

/* Each locks three times; the lock goes round, though the one that unlocks asks for it
 * again at once. */
static void locker(struct task_call *call)
{
    struct job *job = job_of(call);
    struct world *w = job->world;
    for (int i = 0; i < 3; i++) {
        mutex_lock(&w->mutex);
        CHECK(w->mutex.holder == task_current());
        CHECK_EQ(w->running++, 0);
        note(job);
        task_yield();
        task_sleep_ns(NS_PER_US);
        w->running--;
        mutex_unlock(&w->mutex);
        CHECK(i == 2 || !mutex_trylock(&w->mutex));
    }
    end(job);
}

static void test_mutex(struct world *w)
{
    begin(w);
    for (int i = 0; i < 3; i++)
        add(w, locker, false);
    run(w);
    check_order(w, (const int[]){0, 1, 2, 0, 1, 2, 0, 1, 2}, 9);
    CHECK(w->mutex.holder == NULL);
}

/* --- what must not be --- */

/* More than the stack of a task has. */
static void use_much(void *arg)
{
    volatile char large[4 * TASK_STACK_BYTES];
    CHECK(task_current() == NULL);
    for (size_t i = 0; i < sizeof large; i += 4096)
        large[i] = 1;
    *(bool *)arg = true;
}

static void goes_outside(struct task_call *call)
{
    struct job *job = job_of(call);
    struct task *self = task_current();
    bool was_called = false;
    task_wake(self); /* somebody's wake does not end it early */
    task_outside(use_much, &was_called);
    CHECK(was_called && task_current() == self);
    note(job);
    end(job);
}

static void test_outside(struct world *w)
{
    begin(w);
    add(w, goes_outside, false);
    add(w, goes_outside, false);
    run(w);
    CHECK_EQ(w->order_len, 2);
}

static void suspend_in_scope(struct task_call *call)
{
    (void)call;
    task_no_suspend_begin();
    task_no_suspend_begin();
    task_no_suspend_end();
    task_yield();
}

attr_unused static void overflow(struct task_call *call)
{
    volatile char page[2048];
    page[0] = 1;
    if (page[0] == 1)
        overflow(call);
    page[1] = page[0];
}

static int signal_of(struct world *w, void (*main)(struct task_call *call))
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        close(STDERR_FILENO);
        begin(w);
        add(w, main, false);
        loop_run(w->loop);
        _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
}

static void test_no_suspend(struct world *w)
{
    task_no_suspend_begin(); /* nothing outside of tasks */
    task_no_suspend_end();
    CHECK_EQ(signal_of(w, suspend_in_scope), SIGABRT);
#ifndef HAVE_ASAN /* which has its own way to find that, and reports it as an error */
    CHECK(signal_of(w, overflow) != 0);
#endif
}

int main(void)
{
    static struct world w;
    CHECK(task_current() == NULL);
    test_ping_pong(&w);
    test_early_wake(&w);
    test_call_is_freed();
    test_more_than_stacks(&w);
    test_system_takes_all(&w);
    test_abandon(&w);
    test_no_memory(&w);
    test_sleep(&w);
    test_waitlist(&w);
    test_event(&w);
    test_mutex(&w);
    test_outside(&w);
    test_no_suspend(&w);
    return 0;
}
