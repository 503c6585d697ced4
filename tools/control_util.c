/* SPDX-License-Identifier: Apache-2.0 */
/* What the operations have in common: requests to variables, values to JSON. */
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include "tools/control_internal.h"
#include "tools/control_wire.h"

/* Of a line that is no JSON it says something; the parser refuses that. */
static bool is_too_deep(const char *line, size_t len)
{
    uint32_t depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < len; i++) {
        char c = line[i];
        if (in_string && c == '\\')
            i++; /* whatever follows ends nothing */
        else if (c == '"')
            in_string = !in_string;
        else if (!in_string && (c == '[' || c == '{') && ++depth > CONTROL_DEPTH_MAX)
            return true;
        else if (!in_string && (c == ']' || c == '}') && depth > 0)
            depth--;
    }
    return false;
}

json_t *control_parse(const char *line, size_t len)
{
    json_error_t jerr;
    if (is_too_deep(line, len))
        return NULL;
    json_t *request = json_loadb(line, len, JSON_REJECT_DUPLICATES, &jerr);
    if (json_is_object(request))
        return request;
    json_decref(request);
    return NULL;
}

int control_unpack(struct control_call *call, struct error *err, const char *format, ...)
{
    json_error_t jerr;
    va_list args;
    va_start(args, format);
    int r = json_vunpack_ex(call->request, &jerr, JSON_STRICT, format, args);
    va_end(args);
    return r == 0 ? 0 : err_set(err, -EINVAL, "bad request: %s", jerr.text);
}

json_t *control_number(uint64_t n)
{
    return json_integer((json_int_t)min_u64(n, INT64_MAX));
}

json_t *control_time(uint64_t wall_ns)
{
    time_t seconds = (time_t)(wall_ns / NS_PER_S);
    struct tm tm;
    char text[40];
    if (wall_ns == 0 || gmtime_r(&seconds, &tm) == NULL ||
        strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0)
        return json_null();
    return json_string(text);
}

json_t *control_string_or_null(const char *text)
{
    return text[0] != '\0' ? json_string(text) : json_null();
}

json_t *control_uid(struct uid uid)
{
    char text[UID_TEXT_LEN + 1];
    uid_print(uid, text);
    return json_string(text);
}
