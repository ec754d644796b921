/* A librashpa for tests: it writes each call as a line of text to the file that RASHPA_CALLS names, and moves no data.
   Declarations are those that lima2 assumes; the constants are written here once more, so that a change is seen. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

typedef struct { char name[64]; } object_t;

enum { CONCATENATE = 1, OVERWRITE = 2, CIRCULAR = 4, ONESHOT = 8 };
enum { EV_GRP = 1, EV_ATEND = 2 };

#define SAY(...) do { \
    const char *path = getenv("RASHPA_CALLS"); \
    FILE *file = path ? fopen(path, "a") : NULL; \
    if (file) { fprintf(file, __VA_ARGS__); fputc('\n', file); fclose(file); } \
} while (0)

static object_t *make(const char *name, const char *suffix) {
    object_t *made = malloc(sizeof *made);
    snprintf(made->name, sizeof made->name, "%s%s", name, suffix);
    return made;
}

object_t *rashpaManagerCreate(const char *detector) {
    SAY("rashpaManagerCreate(\"%s\")", detector);
    return make("manager_pt", "");
}

object_t *rashpaManagerGetReceiver(object_t *manager, const char *name) {
    SAY("rashpaManagerGetReceiver(%s, \"%s\")", manager->name, name);
    return make(name, "_pt");
}

void rashpaManagerStart(object_t *manager) { SAY("rashpaManagerStart(%s)", manager->name); }

void rashpaManagerStop(object_t *manager) { SAY("rashpaManagerStop(%s)", manager->name); }

void rashpaManagerDestroy(object_t *manager) {
    SAY("rashpaManagerDestroy(%s)", manager->name);
    free(manager);
}

object_t *rashpaManagerCreateGDT(object_t *manager, const char *name, const char *dataset) {
    const char *refused = getenv("RASHPA_REFUSES");
    SAY("rashpaManagerCreateGDT(%s, \"%s\", \"%s\")", manager->name, name, dataset);
    return refused && !strcmp(refused, name) ? NULL : make("GDT", "");
}

void rashpaGDTSetSourceFullImage(object_t *gdt) { SAY("rashpaGDTSetSourceFullImage(%s)", gdt->name); }

void rashpaGDTSetSourceImage(object_t *gdt, int x0, int width, int y0, int height) {
    SAY("rashpaGDTSetSourceImage(%s, %d, %d, %d, %d)", gdt->name, x0, width, y0, height);
}

void rashpaGDTSetAlignment(object_t *gdt, int bits, int row_bits, int header, int footer) {
    SAY("rashpaGDTSetAlignment(%s, %d, %d, %d, %d)", gdt->name, bits, row_bits, header, footer);
}

void rashpaGDTSetSourceSlices(object_t *gdt, int start, int count, int period) {
    SAY("rashpaGDTSetSourceSlices(%s, %d, %d, %d)", gdt->name, start, count, period);
}

void rashpaGDTSetRules(object_t *gdt, int blocks_per_group, int start_slot, int flags) {
    const char *placement = (flags & 3) == CONCATENATE ? "RASHPA_CONCATENATE" : "RASHPA_OVERWRITE";
    const char *cycle = (flags & 12) == CIRCULAR ? "RASHPA_CIRCULAR" : "RASHPA_ONESHOT";
    SAY("rashpaGDTSetRules(%s, %d, %d, %s | %s)", gdt->name, blocks_per_group, start_slot, placement, cycle);
}

void rashpaGDTSetEvents(object_t *gdt, int period, int mask) {
    const char *both = mask == (EV_GRP | EV_ATEND) ? " | " : "";
    SAY("rashpaGDTSetEvents(%s, %d, %s%s%s)", gdt->name, period, mask & EV_GRP ? "RASHPA_EV_GRP" : "", both,
        mask & EV_ATEND ? "RASHPA_EV_ATEND" : "");
}

object_t *rashpaManagerGetGDTBuffer(object_t *manager, object_t *gdt, ssize_t bytes) {
    SAY("rashpaManagerGetGDTBuffer(%s, %s, %zd)", manager->name, gdt->name, bytes);
    return make("buffer", "");
}

void rashpaBufferCreateLocalBufferInMemSpace(object_t *buffer, object_t *receiver, const char *memspace) {
    SAY("rashpaBufferCreateLocalBufferInMemSpace(%s, %s, \"%s\")", buffer->name, receiver->name, memspace);
}
