/* Times what a compiler's own vectorised loop takes for the exponentials of one selective scan:
 * 1,024 positions, 256 channels, 16 states, two threads, nothing written but a sum.
 *
 *     gcc -O3 -march=native -ffast-math -mprefer-vector-width=512 -fopenmp exponentials.c \
 *         -o exponentials -lmvec -lm && OMP_NUM_THREADS=2 ./exponentials
 *
 * -ffast-math lets gcc call the vector expf of glibc (libmvec). Compare with `python -m benchmarks scan`.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { POSITIONS = 1024, CHANNELS = 256, STATES = 16, LANES = 16, TURNS = 201 };

static float step[POSITIONS * CHANNELS], rate[STATES * CHANNELS], sums[CHANNELS];

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(void) {
    double took[TURNS];
    for (int i = 0; i < POSITIONS * CHANNELS; ++i) step[i] = 0.001f * (float)(1 + i % 97);
    for (int i = 0; i < STATES * CHANNELS; ++i) rate[i] = -1.5f * (float)(1 + i / CHANNELS);
    for (int turn = 0; turn < TURNS; ++turn) {
        const double begin = seconds();
#pragma omp parallel for
        for (int c = 0; c < CHANNELS; c += LANES) {
            float sum[LANES] = {0};
            for (int t = 0; t < POSITIONS; ++t)
                for (int n = 0; n < STATES; ++n)
#pragma omp simd
                    for (int i = 0; i < LANES; ++i)
                        sum[i] += expf(step[t * CHANNELS + c + i] * rate[n * CHANNELS + c + i]);
            for (int i = 0; i < LANES; ++i) sums[c + i] = sum[i];
        }
        took[turn] = seconds() - begin;
    }
    qsort(took, TURNS, sizeof *took, ascending);
    printf("median %.3f ms, lowest %.3f ms (sum of channel 0: %g)\n", took[TURNS / 2] * 1e3,
           took[0] * 1e3, (double)sums[0]);
    return 0;
}
