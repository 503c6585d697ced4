/* SPDX-License-Identifier: Apache-2.0 */
/*
 * "HOST:PORT" into socket addresses. Numbers at once; names on a thread of their own, so
 * that a name server that does not answer holds up nobody else.
 */
#ifndef PARALLAX_RUNTIME_NET_LOOKUP_INTERNAL_H
#define PARALLAX_RUNTIME_NET_LOOKUP_INTERNAL_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "runtime/error.h"
#include "runtime/limits.h"
#include "runtime/loop.h"

union net_address {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
};
static inline socklen_t net_address_len(const union net_address *address)
{
    return address->any.sa_family == AF_INET ? sizeof address->in : sizeof address->in6;
}

/* True: the text was "NUMBER:PORT", with brackets around an IPv6 one. */
bool net_address_parse(const char *text, union net_address *ret);
/* The addresses of "NUMBER:PORT", or of "NAME:PORT": then it may take as long as the
 * system takes, and must not be called on a task. *ret_count: 1 to NET_ADDRESSES_MAX.
 * -EINVAL, -EHOSTUNREACH; the text is for behind the address. */
int net_address_find(const char *text, union net_address *ret, uint32_t *ret_count,
                     struct error *err);
/* As "HOST:PORT". */
void net_address_print(const union net_address *address, char *ret, size_t cap);

/* Counts the threads, also those whose lookup was cancelled. */
struct lookups;
struct lookups *lookups_create(void);
/* Threads may still be running; they clean up after themselves. */
void lookups_destroy(struct lookups *lookups);

struct lookup;
/* done is called on the loop, once, unless it is cancelled; never from inside.
 * addresses are valid during the call; code 0, or why there are none. */
typedef void lookup_done_fn(void *arg, int code, const char *why,
                            const union net_address *addresses, uint32_t count);
/* -EINVAL: it is no address; -PLX_ELIMIT, -ENOMEM. */
int lookup_start(struct lookups *lookups, struct loop *loop, const char *text,
                 lookup_done_fn *done, void *arg, struct lookup **ret, struct error *err);
void lookup_cancel(struct lookup *lookup);

#endif
