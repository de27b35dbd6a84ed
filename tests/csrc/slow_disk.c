// A disk that fails on request, put before a program by LD_PRELOAD.
//
// While the file $ILM_HANG_READS exists, reads of Parquet files hang on the rank $ILM_HANG_RANK.
// While the file $ILM_SLOW_SYNCS exists, every sync takes $ILM_SYNC_MS milliseconds more.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int there(const char *variable) {
    const char *path = getenv(variable);
    return path && access(path, F_OK) == 0;
}

static int is_our_rank(void) {
    const char *rank = getenv("OMPI_COMM_WORLD_RANK"), *wanted = getenv("ILM_HANG_RANK");
    return wanted && strcmp(rank ? rank : "0", wanted) == 0;
}

static int is_parquet(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 8) return 0;
    path[length] = 0;
    return strcmp(path + length - 8, ".parquet") == 0;
}

ssize_t pread64(int fd, void *buffer, size_t count, off64_t offset) {
    static ssize_t (*next)(int, void *, size_t, off64_t);
    if (!next) next = dlsym(RTLD_NEXT, "pread64");
    while (is_our_rank() && there("ILM_HANG_READS") && is_parquet(fd)) usleep(10000);
    return next(fd, buffer, count, offset);
}

static void delay(void) {
    const char *ms = getenv("ILM_SYNC_MS");
    if (ms && there("ILM_SLOW_SYNCS")) usleep(1000 * atoi(ms));
}

int fsync(int fd) {
    static int (*next)(int);
    if (!next) next = dlsym(RTLD_NEXT, "fsync");
    delay();
    return next(fd);
}

int fdatasync(int fd) {
    static int (*next)(int);
    if (!next) next = dlsym(RTLD_NEXT, "fdatasync");
    delay();
    return next(fd);
}
