/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/table.h"

#include <stdio.h>

struct table {
    const char *aligns;
    size_t columns;
    char **cells;
    size_t count, cap;
    bool bad;
};

struct table *table_create(const char *aligns)
{
    struct table *table = calloc(1, sizeof *table);
    if (table == NULL)
        return NULL;
    table->aligns = aligns;
    table->columns = strlen(aligns);
    return table;
}

void table_destroy(struct table *table)
{
    if (table == NULL)
        return;
    for (size_t i = 0; i < table->count; i++)
        free(table->cells[i]);
    free(table->cells);
    free(table);
}

void table_add(struct table *table, const char *text)
{
    if (table->count == table->cap) {
        size_t cap = table->cap == 0 ? 64 : 2 * table->cap;
        char **cells = reallocarray(table->cells, cap, sizeof *cells);
        if (cells == NULL) {
            table->bad = true;
            return;
        }
        table->cells = cells;
        table->cap = cap;
    }
    char *copy = strdup(text);
    if (copy == NULL)
        table->bad = true;
    else
        table->cells[table->count++] = copy;
}

static int column_width(const struct table *table, size_t column)
{
    size_t width = 0;
    for (size_t i = column; i < table->count; i += table->columns)
        width = max_u64(width, strlen(table->cells[i]));
    return (int)width;
}

bool table_print(const struct table *table)
{
    if (table->bad)
        return false;
    assert(table->count % table->columns == 0);
    cleanup(free_ptr) int *widths = calloc(table->columns, sizeof *widths);
    if (widths == NULL)
        return false;
    for (size_t c = 0; c < table->columns; c++)
        widths[c] = column_width(table, c);
    for (size_t i = 0; i < table->count; i++) {
        size_t c = i % table->columns;
        bool last = c + 1 == table->columns, left = table->aligns[c] == 'l';
        int width = last && left ? 0 : widths[c]; /* no blanks at the end of a line */
        printf("%*s%s", left ? -width : width, table->cells[i], last ? "\n" : "  ");
    }
    return true;
}
