/* SPDX-License-Identifier: Apache-2.0 */
/* What strangers say when they join, and what they are told: the first byte chooses a
 * request, an answer, a text or a token. What decodes must encode to the same bytes. */
#include "replication/join.c"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void check_same(struct writer *w, const uint8_t *bytes, size_t len)
{
    if (w->bad || w->len != len || memcmp(w->bytes, bytes, len) != 0)
        abort();
    writer_done(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    static struct join_request request;
    static struct join_answer answer;
    struct join_token token;
    struct writer w = {0};
    char text[100];
    if (len == 0)
        return 0;
    uint8_t what = *bytes++ % 4;
    len--;
    if (what == 0 && join_request_decode(bytes, len, &request, NULL) == 0) {
        join_request_encode(&request, &w);
        check_same(&w, bytes, len);
    } else if (what == 1 && join_answer_decode(bytes, len, &answer, NULL) == 0) {
        join_answer_encode(&answer, &w);
        check_same(&w, bytes, len);
    } else if (what == 2) {
        join_text_decode(bytes, len, text, sizeof text);
        if (strlen(text) > sizeof text - 1)
            abort();
    } else if (what == 3 && len < sizeof text) {
        memcpy(text, bytes, len);
        text[len] = '\0';
        if (join_token_parse(text, &token, NULL) == 0) {
            char again[JOIN_TOKEN_LEN + 1];
            join_token_print(&token, again);
            if (strcmp(text, again) != 0)
                abort();
        }
    }
    return 0;
}
