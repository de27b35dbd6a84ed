/* How fast plain MPI calls sum 340 MiB of floats in place: whole, in pieces, blocking and not. Prints the best of each.
 * The best of these is what the exchange of the training step (ours.rs) is measured against. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { MIB = 1 << 18, TOTAL = 340 * MIB, ROUNDS = 7, UNDER_WAY = 4 };

static float *values;

static void blocking(int piece) {
    for (int at = 0; at < TOTAL; at += piece) {
        int count = TOTAL - at < piece ? TOTAL - at : piece;
        MPI_Allreduce(MPI_IN_PLACE, values + at, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    }
}

static void non_blocking(int piece) {
    MPI_Request requests[UNDER_WAY];
    for (int i = 0; i < UNDER_WAY; i++) requests[i] = MPI_REQUEST_NULL;
    for (int at = 0, turn = 0; at < TOTAL; at += piece, turn = (turn + 1) % UNDER_WAY) {
        int count = TOTAL - at < piece ? TOTAL - at : piece;
        MPI_Wait(&requests[turn], MPI_STATUS_IGNORE);
        MPI_Iallreduce(MPI_IN_PLACE, values + at, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD, &requests[turn]);
    }
    MPI_Waitall(UNDER_WAY, requests, MPI_STATUSES_IGNORE);
}

/* Milliseconds that the slowest rank takes. */
static double timed(void (*reduce)(int), int piece) {
    MPI_Barrier(MPI_COMM_WORLD);
    double start = MPI_Wtime();
    reduce(piece);
    double took = 1e3 * (MPI_Wtime() - start), slowest;
    MPI_Allreduce(&took, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return slowest;
}

int main(int argc, char **argv) {
    const struct { const char *name; void (*reduce)(int); int piece; } ways[] = {
        {"blocking, 0.5 MiB", blocking, MIB / 2}, {"blocking, 1 MiB", blocking, MIB},
        {"blocking, 4 MiB", blocking, 4 * MIB}, {"blocking, whole", blocking, TOTAL},
        {"non-blocking, 1 MiB", non_blocking, MIB}, {"non-blocking, 4 MiB", non_blocking, 4 * MIB},
    };
    enum { WAYS = sizeof ways / sizeof *ways };
    double best[WAYS];
    int rank;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    values = malloc(sizeof(float) * TOTAL);
    if (!values) MPI_Abort(MPI_COMM_WORLD, 1);
    for (int i = 0; i < TOTAL; i++) values[i] = 1e-20f;
    for (int i = 0; i < WAYS; i++) best[i] = 1e9;
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < WAYS; i++) {
            double took = timed(ways[i].reduce, ways[i].piece);
            if (took < best[i]) best[i] = took;
        }
    for (int i = 0; rank == 0 && i < WAYS; i++) printf("%-32s %8.1f ms\n", ways[i].name, best[i]);
    MPI_Finalize();
    return 0;
}
