/* arena.c - bump allocator, plus a string map built on it */
#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN_UP(n, a) (((n) + (size_t)(a) - 1) & ~((size_t)(a) - 1))

struct block {
    struct block *next;
    size_t used, size;
    unsigned char data[];
};

struct arena {
    struct block *head;
    size_t block_size;
};

static void *arena_alloc(struct arena *a, size_t n)
{
    n = ALIGN_UP(n ? n : 1, _Alignof(max_align_t));
    struct block *b = a->head;
    if (!b || b->size - b->used < n) {
        size_t size = n > a->block_size ? n : a->block_size;
        b = malloc(sizeof *b + size);
        if (!b)
            return NULL;
        b->next = a->head;
        b->used = 0;
        b->size = size;
        a->head = b;
    }
    void *p = b->data + b->used;
    b->used += n;
    return p;
}

static void arena_free(struct arena *a)
{
    for (struct block *b = a->head, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    a->head = NULL;
}

struct entry {
    struct entry *next;
    uint32_t hash;
    long value;
    char key[];
};

struct map {
    struct arena *arena;
    struct entry **slots;
    size_t nslots, count;
};

static uint32_t fnv1a(const char *s)
{
    uint32_t h = 2166136261u;
    for (; *s; s++) {
        h ^= (unsigned char)*s;
        h *= 16777619u;
    }
    return h;
}

static int map_grow(struct map *m)
{
    size_t n = m->nslots ? m->nslots * 2 : 16;
    struct entry **slots = calloc(n, sizeof *slots);
    if (!slots)
        return -ENOMEM;
    for (size_t i = 0; i < m->nslots; i++) {
        for (struct entry *e = m->slots[i], *next; e; e = next) {
            next = e->next;
            e->next = slots[e->hash & (n - 1)];
            slots[e->hash & (n - 1)] = e;
        }
    }
    free(m->slots);
    m->slots = slots;
    m->nslots = n;
    return 0;
}

/* Returns a pointer to the value, created as 0 if it is new; NULL when memory is out. */
static long *map_at(struct map *m, const char *key)
{
    uint32_t h = fnv1a(key);
    if (m->nslots)
        for (struct entry *e = m->slots[h & (m->nslots - 1)]; e; e = e->next)
            if (e->hash == h && strcmp(e->key, key) == 0)
                return &e->value;
    if (m->count >= m->nslots - m->nslots / 4 && map_grow(m) != 0)
        return NULL;
    size_t len = strlen(key) + 1;
    struct entry *e = arena_alloc(m->arena, sizeof *e + len);
    if (!e)
        return NULL;
    memcpy(e->key, key, len);
    e->hash = h;
    e->value = 0;
    e->next = m->slots[h & (m->nslots - 1)];
    m->slots[h & (m->nslots - 1)] = e;
    m->count++;
    return &e->value;
}

int main(int argc, char **argv)
{
    struct arena arena = { .block_size = 1 << 16 };
    struct map map = { .arena = &arena };

    for (int i = 1; i < argc; i++) {
        long *v = map_at(&map, argv[i]);
        if (!v) {
            perror("map_at");
            arena_free(&arena);
            return EXIT_FAILURE;
        }
        ++*v;
    }
    for (size_t i = 0; i < map.nslots; i++)
        for (const struct entry *e = map.slots[i]; e; e = e->next)
            printf("%-20s %ld\n", e->key, e->value);
    free(map.slots);
    arena_free(&arena);
    return 0;
}
