/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/loop.h"
#include "runtime/loop_uv.h"
#include "tests/unit/check.h"

/* --- posted work --- */

struct job {
    struct work work;
    struct loop *loop;
    struct job *other;
    int *log, *log_len;
    int number, again;
};

static void job_run(struct work *work)
{
    struct job *job = container_of(work, struct job, work);
    CHECK(!work->posted);
    job->log[(*job->log_len)++] = job->number;
    if (job->other != NULL)
        loop_post_cancel(job->loop, &job->other->work);
    if (job->again-- > 0)
        loop_post(job->loop, work);
    else if (job->number == 9)
        loop_stop(job->loop);
}

static void test_post(void)
{
    struct loop *loop = loop_create();
    int log[16], len = 0;
    struct job jobs[10];
    for (int i = 0; i < 10; i++)
        jobs[i] = (struct job){.work.run = job_run, .loop = loop, .log = log,
                               .log_len = &len, .number = i};
    jobs[1].other = &jobs[2]; /* 1 takes 2 away */
    jobs[9].again = 2;
    loop_post(loop, &jobs[0].work);
    loop_post(loop, &jobs[1].work);
    loop_post(loop, &jobs[0].work); /* already there */
    loop_post(loop, &jobs[2].work);
    loop_post(loop, &jobs[9].work);
    loop_post(loop, &jobs[3].work);
    loop_run(loop);
    const int want[] = {0, 1, 9, 3, 9, 9};
    CHECK_EQ(len, ARRAY_LEN(want));
    for (int i = 0; i < len; i++)
        CHECK_EQ(log[i], want[i]);
    loop_destroy(loop);
}

static void test_run_ready_max(void)
{
    struct loop *loop = loop_create();
    int log[16], len = 0;
    struct job jobs[3];
    for (int i = 0; i < 3; i++) {
        jobs[i] = (struct job){.work.run = job_run, .loop = loop, .log = log,
                               .log_len = &len, .number = i};
        loop_post(loop, &jobs[i].work);
    }
    jobs[1].other = &jobs[2]; /* the last one goes while the marker stands behind it */
    CHECK(loop_run_ready(loop, 1));
    CHECK_EQ(len, 1);
    CHECK(!loop_run_ready(loop, 5));
    CHECK_EQ(len, 2);
    CHECK(!loop_run_ready(loop, 5));
    loop_destroy(loop);
}

/* --- timers --- */

struct alarm {
    struct timer timer;
    struct loop *loop;
    struct alarm *to_stop;
    int *log, *log_len;
    int number, again;
    uint64_t due_ns;
};

static void alarm_fire(struct timer *timer)
{
    struct alarm *alarm = container_of(timer, struct alarm, timer);
    CHECK(!timer->armed);
    CHECK(loop_now_ns(alarm->loop) >= alarm->due_ns);
    alarm->log[(*alarm->log_len)++] = alarm->number;
    if (alarm->to_stop != NULL)
        timer_stop(alarm->loop, &alarm->to_stop->timer);
    if (alarm->again-- > 0)
        timer_start(alarm->loop, timer, 0);
    else if (alarm->number == 9)
        loop_stop(alarm->loop);
}

static void alarm_start(struct alarm *alarm, uint64_t delay_ns)
{
    alarm->due_ns = loop_now_ns(alarm->loop) + delay_ns;
    timer_start(alarm->loop, &alarm->timer, delay_ns);
}

static void test_timers(void)
{
    struct loop *loop = loop_create();
    int log[64], len = 0;
    struct alarm alarms[10];
    for (int i = 0; i < 10; i++)
        alarms[i] = (struct alarm){.timer.fire = alarm_fire, .loop = loop, .log = log,
                                   .log_len = &len, .number = i};
    uint64_t start_ns = loop_now_ns(loop);
    alarm_start(&alarms[9], 600 * NS_PER_MS);
    alarm_start(&alarms[3], 300 * NS_PER_MS);
    alarm_start(&alarms[1], 10 * NS_PER_MS);
    alarm_start(&alarms[2], 1 * NS_PER_MS);
    alarm_start(&alarms[2], 20 * NS_PER_MS); /* started anew */
    alarm_start(&alarms[4], UINT64_MAX);     /* never; 3 stops it */
    alarm_start(&alarms[5], 15 * NS_PER_MS); /* 1 stops it */
    alarm_start(&alarms[6], 12 * NS_PER_MS);
    timer_stop(loop, &alarms[6].timer);
    timer_stop(loop, &alarms[6].timer);
    alarms[1].to_stop = &alarms[5];
    alarms[3].to_stop = &alarms[4];
    alarms[2].again = 3;
    loop_run(loop);
    uint64_t took_ns = loop_now_ns(loop) - start_ns;
    CHECK(took_ns >= 600 * NS_PER_MS);
    const int want[] = {1, 2, 2, 2, 2, 3, 9};
    CHECK_EQ(len, ARRAY_LEN(want));
    for (int i = 0; i < len; i++)
        CHECK_EQ(log[i], want[i]);
    loop_destroy(loop);
}

/* A loop whose clock stands still: equal deadlines fire in order of start, and one that
 * restarts itself waits for the next call. */
static uint64_t still_now_ns(const struct loop *loop)
{
    (void)loop;
    return 1000;
}

static uint64_t armed_ns;

static void still_arm(struct loop *loop, uint64_t deadline_ns)
{
    (void)loop;
    armed_ns = deadline_ns;
}

static void test_equal_deadlines(void)
{
    static const struct loop_ops ops = {.now_ns = still_now_ns, .arm = still_arm};
    struct loop loop;
    CHECK_EQ(loop_init(&loop, &ops), 0);
    int log[16], len = 0;
    struct alarm alarms[4];
    for (int i = 0; i < 4; i++) {
        alarms[i] = (struct alarm){.timer.fire = alarm_fire, .loop = &loop, .log = log,
                                   .log_len = &len, .number = i};
        timer_start(&loop, &alarms[i].timer, i == 3 ? 5 : 0);
    }
    CHECK_EQ(armed_ns, 1000);
    alarms[0].again = 1;
    timer_start(&loop, &alarms[1].timer, 0); /* now behind 2 */
    loop_fire_timers(&loop);
    CHECK_EQ(len, 3);
    CHECK(log[0] == 0 && log[1] == 2 && log[2] == 1);
    CHECK_EQ(armed_ns, 1000);
    loop_fire_timers(&loop);
    CHECK(len == 4 && log[3] == 0);
    CHECK_EQ(armed_ns, 1005);
    timer_stop(&loop, &alarms[3].timer);
    CHECK(armed_ns == UINT64_MAX);
    loop_done(&loop);
}

/* --- other threads --- */

#define THREADS 4
#define POSTS   20000

struct message {
    struct work work;
    struct receiver *receiver;
    int thread, number;
};

struct receiver {
    struct loop *loop;
    int next[THREADS];
    int count;
};

static void receive(struct work *work)
{
    struct message *message = container_of(work, struct message, work);
    struct receiver *receiver = message->receiver;
    CHECK_EQ(receiver->next[message->thread], message->number); /* in order */
    receiver->next[message->thread]++;
    free(message);
    if (++receiver->count == THREADS * POSTS)
        loop_stop(receiver->loop);
}

struct sender {
    pthread_t thread;
    struct receiver *receiver;
    int number;
};

static void *send_all(void *arg)
{
    struct sender *sender = arg;
    for (int i = 0; i < POSTS; i++) {
        struct message *message = malloc(sizeof *message);
        *message = (struct message){.work.run = receive, .receiver = sender->receiver,
                                    .thread = sender->number, .number = i};
        loop_post_from_thread(sender->receiver->loop, &message->work);
    }
    return NULL;
}

static void test_threads(void)
{
    struct receiver receiver = {.loop = loop_create()};
    struct sender senders[THREADS];
    for (int i = 0; i < THREADS; i++) {
        senders[i] = (struct sender){.receiver = &receiver, .number = i};
        CHECK_EQ(pthread_create(&senders[i].thread, NULL, send_all, &senders[i]), 0);
    }
    loop_run(receiver.loop);
    for (int i = 0; i < THREADS; i++)
        pthread_join(senders[i].thread, NULL);
    loop_destroy(receiver.loop);
}

/* --- watches --- */

struct watcher {
    struct loop *loop;
    struct watch *watch;
    int fd, other_fd;
    char text[16];
    int len, calls;
    unsigned events;
};

static void pipe_ready(void *arg, unsigned events)
{
    struct watcher *w = arg;
    CHECK_EQ(events, WATCH_READ);
    char c;
    ssize_t n = read(w->fd, &c, 1); /* one at a time: it stays ready */
    if (n == 1) {
        w->text[w->len++] = c;
        return;
    }
    CHECK_EQ(n, 0);
    watch_destroy(w->watch);
    close(w->fd);
    loop_stop(w->loop);
}

static void test_watch_pipe(void)
{
    int ends[2];
    CHECK_EQ(pipe(ends), 0);
    struct watcher w = {.loop = loop_create(), .fd = ends[0]};
    w.watch = watch_create(w.loop, w.fd, pipe_ready, &w);
    CHECK_EQ(watch_set(w.watch, WATCH_READ), 0);
    CHECK_EQ(watch_set(w.watch, 0), 0);
    CHECK_EQ(watch_set(w.watch, WATCH_READ), 0);
    CHECK_EQ(write(ends[1], "hello", 5), 5);
    close(ends[1]);
    loop_run(w.loop);
    CHECK_STR(w.text, "hello");
    /* Not something that can be waited for. */
    int file = open("/dev/null", O_RDONLY);
    CHECK(watch_create(w.loop, file, pipe_ready, &w) == NULL);
    close(file);
    loop_destroy(w.loop);
}

/* Writing ends that have lost their reader are ready, again and again, until their owner
 * closes them: nobody hangs on a broken connection. */
static void broken_ready(void *arg, unsigned events)
{
    struct watcher *w = arg;
    w->events = events;
    if (++w->calls < 3)
        return;
    watch_destroy(w->watch);
    close(w->fd);
    loop_stop(w->loop);
}

static void test_watch_error(void)
{
    int ends[2];
    CHECK_EQ(pipe(ends), 0);
    struct watcher w = {.loop = loop_create(), .fd = ends[1]};
    w.watch = watch_create(w.loop, w.fd, broken_ready, &w);
    CHECK_EQ(watch_set(w.watch, WATCH_WRITE), 0);
    close(ends[0]);
    loop_run(w.loop);
    CHECK_EQ(w.events, WATCH_WRITE);
    loop_destroy(w.loop);
}

static void duplex_ready(void *arg, unsigned events)
{
    struct watcher *w = arg;
    w->events |= events;
    w->calls++;
    if (events & WATCH_WRITE) {
        CHECK_EQ(watch_set(w->watch, WATCH_READ), 0);
        CHECK_EQ(write(w->other_fd, "x", 1), 1);
        return;
    }
    watch_destroy(w->watch);
    loop_stop(w->loop);
}

static void test_watch_both(void)
{
    int ends[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    struct watcher w = {.loop = loop_create(), .fd = ends[0], .other_fd = ends[1]};
    w.watch = watch_create(w.loop, w.fd, duplex_ready, &w);
    CHECK_EQ(watch_set(w.watch, WATCH_READ | WATCH_WRITE), 0);
    loop_run(w.loop);
    CHECK_EQ(w.events, WATCH_READ | WATCH_WRITE);
    CHECK_EQ(w.calls, 2);
    loop_destroy(w.loop);
    close(ends[0]);
    close(ends[1]);
}

/* --- the rest --- */

static void on_signal(void *arg, int signo)
{
    CHECK_EQ(signo, SIGTERM);
    loop_stop(arg);
}

static void test_signal(void)
{
    struct loop *loop = loop_create();
    CHECK_EQ(loop_on_signal(loop, on_signal, loop), 0);
    CHECK_EQ(kill(getpid(), SIGTERM), 0);
    loop_run(loop);
    loop_destroy(loop);
}

struct idle {
    struct job *job;
    int calls;
};

/* Does something twice, then posts work, which must not have to wait for a poll. */
static bool idle_hook(void *arg)
{
    struct idle *idle = arg;
    idle->calls++;
    if (idle->calls == 3)
        loop_post(idle->job->loop, &idle->job->work);
    return idle->calls < 3;
}

static void test_idle_hook(void)
{
    struct loop *loop = loop_create();
    CHECK(*loop_uv_aio_slot(loop) == NULL);
    int log[4], len = 0;
    struct job job = {.work.run = job_run, .loop = loop, .log = log, .log_len = &len,
                      .number = 9};
    struct idle idle = {.job = &job};
    loop_set_idle_hook(loop, idle_hook, &idle);
    loop_run(loop);
    CHECK_EQ(len, 1);
    loop_set_idle_hook(loop, NULL, NULL);
    loop_destroy(loop);
}

/* Work that never ends must not keep descriptors from being polled. */
static void busy_run(struct work *work)
{
    struct job *job = container_of(work, struct job, work);
    if (job->again != 0)
        loop_post(job->loop, work);
}

static void busy_ready(void *arg, unsigned events)
{
    (void)events;
    struct job *job = arg;
    job->again = 0;
    loop_stop(job->loop);
}

static void test_busy_loop_polls(void)
{
    int ends[2];
    CHECK_EQ(pipe(ends), 0);
    struct job job = {.work.run = busy_run, .loop = loop_create(), .again = 1};
    struct watch *watch = watch_create(job.loop, ends[0], busy_ready, &job);
    CHECK_EQ(watch_set(watch, WATCH_READ), 0);
    CHECK_EQ(write(ends[1], "x", 1), 1);
    loop_post(job.loop, &job.work);
    loop_run(job.loop);
    watch_destroy(watch);
    loop_post_cancel(job.loop, &job.work);
    loop_destroy(job.loop);
    close(ends[0]);
    close(ends[1]);
}

static void test_clock_and_random(void)
{
    struct loop *loop = loop_create();
    uint64_t first_ns = loop_now_ns(loop);
    usleep(2000);
    CHECK(loop_now_ns(loop) >= first_ns + 2 * NS_PER_MS); /* fresh while not running */
    CHECK(loop_wall_ns(loop) > UINT64_C(1600000000) * NS_PER_S);
    CHECK(loop_random_u64(loop) != loop_random_u64(loop));
    uint8_t a[1000] = {0}, b[1000] = {0};
    loop_random_bytes(loop, a, sizeof a);
    loop_random_bytes(loop, b, sizeof b);
    CHECK(memcmp(a, b, sizeof a) != 0);
    loop_destroy(loop);
}

int main(void)
{
    test_post();
    test_run_ready_max();
    test_timers();
    test_equal_deadlines();
    test_threads();
    test_watch_pipe();
    test_watch_error();
    test_watch_both();
    test_signal();
    test_idle_hook();
    test_busy_loop_polls();
    test_clock_and_random();
    return 0;
}
