// NCCL and the CUDA runtime over host memory, between processes of one machine: as much of them as the worker calls.
//
// Streams are threads that take their work in order, so calls return before their work is done, as on a GPU. Set by the
// environment: ILM_STAND_IN_GPUS (2), ILM_STAND_IN_LOG (a file of the calls, .RANK is added), ILM_STAND_IN_SLOW_MS (of every
// collective), ILM_STAND_IN_ABORT (hang), and ILM_STAND_IN_FAULT with ILM_STAND_IN_FAULT_RANK (all): id, init, init-hang, or call:N,
// hang:N, async:N for the N-th collective, from 0.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MOST_RANKS = 8, PIECE = 1 << 16, NOT_READY = 600, UNHANDLED_CUDA = 1, REMOTE_ERROR = 6 };

// ---- what the environment says

static const char *text(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

static const char *rank_text(void) { return text("OMPI_COMM_WORLD_RANK", "0"); }

// Whether this rank has the fault; `at` is the number of the collective, or -1.
static int fault(const char *kind, long at) {
    char wanted[64];
    if (at < 0) snprintf(wanted, sizeof wanted, "%s", kind);
    else snprintf(wanted, sizeof wanted, "%s:%ld", kind, at);
    const char *rank = text("ILM_STAND_IN_FAULT_RANK", rank_text());
    return strcmp(text("ILM_STAND_IN_FAULT", ""), wanted) == 0 && strcmp(rank, rank_text()) == 0;
}

static void sleep_ms(long ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static void note(const char *call) {
    const char *path = text("ILM_STAND_IN_LOG", NULL);
    if (!path) return;
    char name[4096];
    snprintf(name, sizeof name, "%s.%s", path, rank_text());
    FILE *file = fopen(name, "a");
    if (!file) return;
    fprintf(file, "%s\n", call);
    fclose(file);
}

static void note_on(const char *call, void *stream) {
    char line[128];
    snprintf(line, sizeof line, "%s %s", call, stream ? "exchange" : "compute");
    note(line);
}

// ---- streams and events

struct event { long recorded, reached; int device; struct timespec when; };
struct work { void (*run)(void *); void *argument; struct work *next; };
struct stream { struct work *first, *last; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct stream compute;
static pthread_once_t compute_once = PTHREAD_ONCE_INIT;

static void *work_off(void *argument) {
    struct stream *stream = argument;
    for (;;) {
        pthread_mutex_lock(&lock);
        while (!stream->first) pthread_cond_wait(&changed, &lock);
        struct work *work = stream->first;
        stream->first = work->next;
        pthread_mutex_unlock(&lock);
        work->run(work->argument);
        free(work->argument);
        free(work);
    }
    return NULL;
}

static void begin_stream(struct stream *stream) {
    pthread_t thread;
    pthread_create(&thread, NULL, work_off, stream);
    pthread_detach(thread);
}

static void begin_compute(void) { begin_stream(&compute); }

static void queue(struct stream *stream, void (*run)(void *), const void *argument, size_t bytes) {
    pthread_once(&compute_once, begin_compute);
    if (!stream) stream = &compute;
    struct work *work = calloc(1, sizeof *work);
    work->run = run;
    work->argument = malloc(bytes);
    memcpy(work->argument, argument, bytes);
    pthread_mutex_lock(&lock);
    if (stream->first) stream->last->next = work;
    else stream->first = work;
    stream->last = work;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

struct mark { struct event *event; long number; };

static void reach(void *argument) {
    struct mark *mark = argument;
    pthread_mutex_lock(&lock);
    if (mark->event->reached < mark->number) mark->event->reached = mark->number;
    clock_gettime(CLOCK_MONOTONIC, &mark->event->when);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void await(void *argument) {
    struct mark *mark = argument;
    pthread_mutex_lock(&lock);
    while (mark->event->reached < mark->number) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

// A thread's last error, and the GPU that it uses.
static _Thread_local int last_code, current;

static int ended(int code) {
    if (code) last_code = code;
    return code;
}

int cudaPeekAtLastError(void) { return last_code; }

int cudaGetLastError(void) {
    int code = last_code;
    last_code = 0;
    return code;
}

int cudaGetDeviceCount(int *count) {
    *count = atoi(text("ILM_STAND_IN_GPUS", "2"));
    return ended(*count > 0 ? 0 : 100);
}

int cudaGetDeviceProperties(void *properties, int device) {
    memset(properties, 0, 1024);
    snprintf(properties, 256, "stand-in GPU");
    ((unsigned char *)properties)[256] = (unsigned char)device;
    return 0;
}

int cudaGetDevice(int *device) {
    *device = current;
    return 0;
}

int cudaSetDevice(int device) {
    if (device >= atoi(text("ILM_STAND_IN_GPUS", "2"))) return ended(101);
    current = device;
    return 0;
}

// Every GPU has half as much left as the one before it.
int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *total = (size_t)1 << 30;
    *free_bytes = *total >> current;
    return 0;
}

int cudaStreamCreateWithFlags(struct stream **stream, unsigned flags) {
    if (flags != 1) return ended(1);
    *stream = calloc(1, sizeof **stream);
    begin_stream(*stream);
    return 0;
}

// A stream's thread may still look at it, so it is not freed.
int cudaStreamDestroy(void *stream) { (void)stream; return 0; }

int cudaEventCreateWithFlags(struct event **event, unsigned flags) {
    *event = calloc(1, sizeof **event);
    (*event)->device = current;
    return ended(flags == 0 ? 0 : 1);
}

// Nor is an event, which work that is queued may still mark.
int cudaEventDestroy(void *event) { (void)event; return 0; }

int cudaEventRecord(struct event *event, struct stream *stream) {
    note_on("record", stream);
    pthread_mutex_lock(&lock);
    struct mark mark = {event, ++event->recorded};
    pthread_mutex_unlock(&lock);
    queue(stream, reach, &mark, sizeof mark);
    return 0;
}

int cudaStreamWaitEvent(struct stream *stream, struct event *event, unsigned flags) {
    (void)flags;
    note_on("wait", stream);
    pthread_mutex_lock(&lock);
    struct mark mark = {event, event->recorded};
    pthread_mutex_unlock(&lock);
    queue(stream, await, &mark, sizeof mark);
    return 0;
}

// Stricter than CUDA, where a thread that has chosen no GPU takes memory of the first one.
int cudaEventQuery(struct event *event) {
    if (event->device != current) return ended(101);
    pthread_mutex_lock(&lock);
    int reached = event->reached >= event->recorded;
    pthread_mutex_unlock(&lock);
    return ended(reached ? 0 : NOT_READY);
}

// Called by tests only, as libtorch waits for what is computed.
int cudaStreamSynchronize(struct stream *stream) {
    struct event end = {.recorded = 1};
    struct mark mark = {&end, 1};
    queue(stream, reach, &mark, sizeof mark);
    await(&mark);
    return 0;
}

int cudaEventElapsedTime(float *ms, struct event *from, struct event *to) {
    pthread_mutex_lock(&lock);
    *ms = (float)(to->when.tv_sec - from->when.tv_sec) * 1e3f + (float)(to->when.tv_nsec - from->when.tv_nsec) / 1e6f;
    pthread_mutex_unlock(&lock);
    return 0;
}

const char *cudaGetErrorString(int code) {
    switch (code) {
        case 0: return "no error";
        case 100: return "no CUDA-capable device is detected";
        case 101: return "invalid device ordinal";
        default: return "stand-in error";
    }
}

// ---- what a test lets the "GPU" compute

struct fill { float *data; size_t count; float value; long ms; };

static void run_fill(void *argument) {
    struct fill *fill = argument;
    sleep_ms(fill->ms);
    for (size_t index = 0; index < fill->count; index++) fill->data[index] = fill->value;
}

void standInFill(float *data, size_t count, float value, long ms) {
    struct fill fill = {data, count, value, ms};
    queue(NULL, run_fill, &fill, sizeof fill);
}

// ---- NCCL

struct id { char name[128]; };
struct shared { atomic_long arrived; float slots[MOST_RANKS][PIECE]; };
struct comm { struct shared *shared; int rank, world; long barriers, collectives; atomic_int aborted, error; };
enum op { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER };
struct collective { struct comm *comm; enum op op; const float *from; float *to; size_t count; long number; };

static const char *last_error = "";

// False if the communicator was aborted meanwhile.
static int meet(struct comm *comm) {
    long all = ++comm->barriers * comm->world;
    atomic_fetch_add(&comm->shared->arrived, 1);
    while (atomic_load(&comm->shared->arrived) < all) {
        if (atomic_load(&comm->aborted)) return 0;
        usleep(100);
    }
    return 1;
}

// One piece of `count` numbers: every rank's numbers are put up, then everybody takes what it needs.
static int exchange(struct comm *comm, const float *from, float *to, size_t count, enum op op, size_t stride) {
    memcpy(comm->shared->slots[comm->rank], from, count * sizeof *from);
    if (!meet(comm)) return 0;
    for (int rank = 0; rank < comm->world; rank++) {
        const float *slot = comm->shared->slots[rank];
        if (op == ALL_GATHER) {
            memcpy(to + rank * stride, slot, count * sizeof *slot);
        } else {
            for (size_t index = 0; index < count; index++) to[index] = (rank ? to[index] : 0) + slot[index];
        }
    }
    return meet(comm);
}

static void collect(void *argument) {
    struct collective *work = argument;
    struct comm *comm = work->comm;
    if (fault("async", work->number)) atomic_store(&comm->error, REMOTE_ERROR);
    while ((fault("hang", work->number) || atomic_load(&comm->error)) && !atomic_load(&comm->aborted)) usleep(100);
    sleep_ms(atol(text("ILM_STAND_IN_SLOW_MS", "0")));
    int whole = work->op == REDUCE_SCATTER ? comm->world : 1;
    float *sums = malloc(PIECE * sizeof *sums);
    for (int part = 0; part < whole; part++) {
        for (size_t begin = 0; begin < work->count; begin += PIECE) {
            size_t count = work->count - begin < PIECE ? work->count - begin : PIECE;
            const float *from = work->from + part * work->count + begin;
            int mine = work->op != REDUCE_SCATTER || part == comm->rank;
            float *to = mine ? work->to + begin : sums;
            if (!exchange(comm, from, to, count, work->op, work->count)) goto end;
        }
    }
end:
    free(sums);
}

static int queue_collective(const char *call, struct collective work, struct stream *stream) {
    if (!work.comm) return 4;
    note_on(call, stream);
    work.number = work.comm->collectives++;
    if (fault("call", work.number)) {
        last_error = "the GPU has fallen off the bus";
        return UNHANDLED_CUDA;
    }
    queue(stream, collect, &work, sizeof work);
    return 0;
}

int ncclAllReduce(const float *from, float *to, size_t count, int type, int op, struct comm *comm, struct stream *stream) {
    (void)type, (void)op;
    return queue_collective("all_reduce", (struct collective){comm, ALL_REDUCE, from, to, count, 0}, stream);
}

int ncclReduceScatter(const float *from, float *to, size_t count, int type, int op, struct comm *comm, struct stream *stream) {
    (void)type, (void)op;
    return queue_collective("reduce_scatter", (struct collective){comm, REDUCE_SCATTER, from, to, count, 0}, stream);
}

int ncclAllGather(const float *from, float *to, size_t count, int type, struct comm *comm, struct stream *stream) {
    (void)type;
    return queue_collective("all_gather", (struct collective){comm, ALL_GATHER, from, to, count, 0}, stream);
}

int ncclGetVersion(int *version) {
    *version = 22907;
    return 0;
}

int ncclGetUniqueId(struct id *id) {
    if (fault("id", -1)) {
        last_error = "no socket interface found";
        return 2;
    }
    snprintf(id->name, sizeof id->name, "/ilm-stand-in-%d", (int)getpid());
    // A process of the same number may have been killed before it was connected.
    shm_unlink(id->name);
    int file = shm_open(id->name, O_CREAT | O_EXCL | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, sizeof(struct shared))) return 2;
    close(file);
    return 0;
}

int ncclCommInitRank(struct comm **comm, int world, struct id id, int rank) {
    if (fault("init", -1)) {
        shm_unlink(id.name);
        last_error = "peer access is not supported between these two devices";
        return UNHANDLED_CUDA;
    }
    while (fault("init-hang", -1)) sleep_ms(1000);
    int file = shm_open(id.name, O_RDWR, 0600);
    if (file < 0 || world > MOST_RANKS) return 2;
    *comm = calloc(1, sizeof **comm);
    (*comm)->shared = mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    (*comm)->rank = rank;
    (*comm)->world = world;
    note("connect");
    meet(*comm);
    if (rank == 0) shm_unlink(id.name);
    return 0;
}

// Work that is queued may still use it, so it is not freed.
int ncclCommDestroy(struct comm *comm) {
    (void)comm;
    note("destroy");
    return 0;
}

int ncclCommAbort(struct comm *comm) {
    note("abort");
    while (strcmp(text("ILM_STAND_IN_ABORT", ""), "hang") == 0) sleep_ms(1000);
    atomic_store(&comm->aborted, 1);
    return 0;
}

int ncclCommGetAsyncError(struct comm *comm, int *error) {
    if (!comm) return 4;
    *error = atomic_load(&comm->error);
    return 0;
}

const char *ncclGetErrorString(int code) {
    switch (code) {
        case 0: return "no error";
        case UNHANDLED_CUDA: return "unhandled cuda error";
        case 2: return "unhandled system error";
        case 4: return "invalid argument";
        case REMOTE_ERROR: return "remote process exited or there was a network error";
        default: return "stand-in error";
    }
}

const char *ncclGetLastError(struct comm *comm) {
    (void)comm;
    return last_error;
}
