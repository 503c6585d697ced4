/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/uri.h"

#include <stdio.h>

/* Each byte that has a meaning in a URI becomes three. */
static char *escape(const char *text)
{
    char *ret = malloc(3 * strlen(text) + 1);
    if (ret == NULL)
        return NULL;
    char *at = ret;
    for (const char *p = text; *p != '\0'; p++) {
        unsigned char c = (unsigned char)*p;
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                     (c >= '0' && c <= '9') || strchr("-._~/@:", c) != NULL;
        if (plain)
            *at++ = (char)c;
        else
            at += sprintf(at, "%%%02X", c);
    }
    *at = '\0';
    return ret;
}

char *uri_of_address(const struct socket_address *address, const char *export_name)
{
    char *ret = NULL;
    cleanup(free_ptr) char *name = escape(export_name);
    cleanup(free_ptr) char *path = escape(address->path);
    if (name == NULL || path == NULL)
        return NULL;
    int n = address->kind == ADDRESS_UNIX
                ? asprintf(&ret, "nbd+unix:///%s?socket=%s", name, path)
                : asprintf(&ret, "nbd://%s/%s", address_text(address).text, name);
    return n < 0 ? NULL : ret;
}

char *uri_with_export(const char *server_uri, const char *export_name)
{
    char *ret = NULL;
    cleanup(free_ptr) char *name = escape(export_name);
    /* The path is empty, so the name goes before the query, or to the end. */
    size_t head = strcspn(server_uri, "?");
    if (name == NULL ||
        asprintf(&ret, "%.*s%s%s", (int)head, server_uri, name, server_uri + head) < 0)
        return NULL;
    return ret;
}

bool uri_is_nbd(const char *text)
{
    static const char *const schemes[] = {"nbd://",       "nbds://",
                                          "nbd+unix://",  "nbds+unix://",
                                          "nbd+vsock://", "nbds+vsock://"};
    for (size_t i = 0; i < ARRAY_LEN(schemes); i++)
        if (strncmp(text, schemes[i], strlen(schemes[i])) == 0)
            return true;
    return false;
}
