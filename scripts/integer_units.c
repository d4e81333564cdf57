// How many integer instructions this CPU starts a cycle, alone and mixed, which products of bytes need without VNNI.
//   cc -O2 scripts/integer_units.c -o target/integer_units && target/integer_units
// A cycle is the time of one dependent addition. Best of 100 measurements each.
#include <stdio.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#define BEST(seconds, code, ...)                                                    \
    do {                                                                            \
        seconds = 1e9;                                                              \
        for (int repeat = 0; repeat < 100; repeat++) {                              \
            double start = now();                                                   \
            for (int i = 0; i < 100000; i++) __asm__ volatile(code ::: __VA_ARGS__); \
            double spent = (now() - start) / 100000;                                \
            if (spent < seconds) seconds = spent;                                   \
        }                                                                           \
    } while (0)

#define MULTIPLY(to) "vpmaddubsw %%ymm0, %%ymm0, %%ymm" #to "\n"
#define ADD(to) "vpaddw %%ymm0, %%ymm0, %%ymm" #to "\n"
#define NEXT "add $1, %%rax\n"
#define CHANGED "rax", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10"

int main(void) {
    double cycle, multiply, add, both;
    BEST(cycle, NEXT NEXT NEXT NEXT NEXT NEXT NEXT NEXT NEXT NEXT, CHANGED);
    BEST(multiply, MULTIPLY(1) MULTIPLY(2) MULTIPLY(3) MULTIPLY(4) MULTIPLY(5) MULTIPLY(6) MULTIPLY(7) MULTIPLY(8) MULTIPLY(9) MULTIPLY(10), CHANGED);
    BEST(add, ADD(1) ADD(2) ADD(3) ADD(4) ADD(5) ADD(6) ADD(7) ADD(8) ADD(9) ADD(10), CHANGED);
    BEST(both, MULTIPLY(1) ADD(2) MULTIPLY(3) ADD(4) MULTIPLY(5) ADD(6) MULTIPLY(7) ADD(8) MULTIPLY(9) ADD(10), CHANGED);
    cycle /= 10;
    printf("a cycle: %.3f ns; cycles for vpmaddubsw %.2f, vpaddw %.2f, one of each %.2f\n", cycle * 1e9, multiply / 10 / cycle,
           add / 10 / cycle, both / 5 / cycle);
}
