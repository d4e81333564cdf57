// What driver.cpp gives to kernels, which see it as kernel.h.
#pragma once

struct uint3 { unsigned int x, y, z; };
struct EmulatedThread {
    uint3 index;
};
struct EmulatedBlock {
    EmulatedThread *current;
    uint3 index, dim, grid;
    char *shared;
};
struct Emulator {
    EmulatedBlock *(*block)();
    void (*sync_block)();
    void (*sync_warp)(unsigned int mask);
    unsigned int (*active_mask)(void *place);
    // Hands `value` to the lanes of `mask`; `from` is the lane whose value comes back.
    unsigned long long (*exchange)(unsigned int mask, unsigned long long value, int from);
    unsigned int (*ballot)(unsigned int mask, bool value);
};
