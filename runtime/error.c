/* SPDX-License-Identifier: Apache-2.0 */
/* Error codes and messages. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* strerrordesc_np: strerror that is safe with threads */
#endif
#include "runtime/error.h"

#include <stdarg.h>
#include <stdio.h>

#define ERRNO_MAX 4095

static const struct own_error {
    int number;
    int guest_errno;
    const char *name;
    const char *text;
} own_errors[] = {
#define X(name, number, text, guest) {number, guest, "PLX_E" #name, text},
    PLX_ERRORS(X)
#undef X
};

/* Codes come with either sign; INT_MIN has no positive twin and is no code. */
static int magnitude(int code)
{
    if (code >= 0)
        return code;
    return code == INT32_MIN ? 0 : -code;
}

static const struct own_error *own_error_find(int number)
{
    for (size_t i = 0; i < ARRAY_LEN(own_errors); i++)
        if (own_errors[i].number == number)
            return &own_errors[i];
    return NULL;
}

int err_set(struct error *err, int code, const char *fmt, ...)
{
    assert(code < 0);
    if (err == NULL)
        return code;
    /* An argument may be the text that is replaced. */
    char text[sizeof err->text];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    memcpy(err->text, text, sizeof text);
    err->code = code;
    return code;
}

int err_add(struct error *err, int code, const char *fmt, ...)
{
    if (err == NULL)
        return code;
    /* A callee without a message: its code is all there is to say. */
    const char *rest = err->text;
    if (err->code == 0) {
        err->code = code;
        rest = err_text(code);
    }
    char text[2 * sizeof err->text];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof err->text, fmt, args);
    va_end(args);
    size_t len = strlen(text);
    snprintf(text + len, sizeof text - len, ": %s", rest);
    text[sizeof err->text - 1] = '\0'; /* the front says more than the end */
    memcpy(err->text, text, sizeof err->text);
    return err->code;
}

const char *err_text(int code)
{
    int number = magnitude(code);
    const struct own_error *own = own_error_find(number);
    if (own != NULL)
        return own->text;
    const char *text = strerrordesc_np(number);
    return text != NULL ? text : "unknown error";
}

const char *err_name(int code)
{
    int number = magnitude(code);
    const struct own_error *own = own_error_find(number);
    if (own != NULL)
        return own->name;
    const char *name = strerrorname_np(number);
    return name != NULL ? name : "UNKNOWN";
}

int err_to_errno(int code)
{
    int number = magnitude(code);
    const struct own_error *own = own_error_find(number);
    if (own != NULL)
        return own->guest_errno;
    return number >= 0 && number <= ERRNO_MAX ? number : EIO;
}
