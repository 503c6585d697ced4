/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tasks: stackful coroutines of one loop. Switches make no system call (the technique
 * of QEMU's coroutine-ucontext: makecontext once per stack, then _setjmp/_longjmp).
 * Stacks are pooled, have a guard page, and their number is bounded; a task that finds
 * no stack starts when one is free. Sanitizers and valgrind are told of every switch.
 *
 * A task never changes thread. LevelDB and OpenSSL must not be called on a task stack.
 */
#ifndef PARALLAX_RUNTIME_TASK_H
#define PARALLAX_RUNTIME_TASK_H

#include "runtime/base.h"

struct loop;
struct task;

/* Embedded in whatever the task works on; that memory bounds the number of tasks. It
 * must stay valid until main has started; main may free it. */
struct task_call {
    void (*main)(struct task_call *call);
    const char *name; /* static */
    bool system;      /* may use the stacks kept for internal work */
    STAILQ_ENTRY(task_call) link;
};

/* Runs call->main on a task, soon (never before this returns). */
void task_start(struct loop *loop, struct task_call *call);

/* The running task, or NULL outside of any. */
struct task *task_current(void);
const char *task_name(const struct task *task);

/* Suspends the running task until task_wake. A wake that comes first is remembered:
 * the next park returns at once. Use the primitives below instead where they fit. */
async void task_park(void);
/* Makes a parked task runnable; it runs from the loop, never inside this call. */
void task_wake(struct task *task);
/* Lets everything else that is runnable go first. */
async void task_yield(void);
async void task_sleep_ns(uint64_t duration_ns);

/* Calls fn on the loop's own stack, which is a large one, and waits for it: for what must
 * not be called on a task. fn may not suspend. */
async void task_outside(void (*fn)(void *arg), void *arg);

/* Between these, suspending is a bug and asserts. They nest. */
void task_no_suspend_begin(void);
void task_no_suspend_end(void);

/* Tasks waiting for something, in order of arrival. All-zero is not valid: use init. */
struct waitlist {
    TAILQ_HEAD(waitlist_head, waiter) waiters;
};
void waitlist_init(struct waitlist *list);
bool waitlist_empty(const struct waitlist *list);
/* Suspends until woken. The condition must be checked again afterwards. */
async void waitlist_wait(struct waitlist *list);
void waitlist_wake_one(struct waitlist *list);
void waitlist_wake_all(struct waitlist *list);

/* A one-shot latch. */
struct event {
    bool is_set;
    struct waitlist waiting;
};
void event_init(struct event *event);
void event_set(struct event *event);
async void event_wait(struct event *event);

/* A fair lock between tasks of one loop. */
struct mutex {
    struct task *holder;
    struct waitlist waiting;
};
void mutex_init(struct mutex *mutex);
async void mutex_lock(struct mutex *mutex);
bool mutex_trylock(struct mutex *mutex);
void mutex_unlock(struct mutex *mutex);

#endif
