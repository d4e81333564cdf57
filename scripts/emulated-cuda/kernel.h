// What CUDA C++ kernels need in order to be compiled by g++ and run by driver.cpp: types of half precision, vectors, functions and
// barriers of devices. Only what CubeCL writes is here. No headers of the C++ library, whose names the kernels define anew.
#pragma once
#include <stddef.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

#include "emulator.h"

static const Emulator *emulator;
static thread_local EmulatedBlock *emulated_block;
extern "C" void emulated_module(const Emulator *given) { emulator = given; }

#define threadIdx (emulated_block->current->index)
#define blockIdx (emulated_block->index)
#define blockDim (emulated_block->dim)
#define gridDim (emulated_block->grid)
#define warpSize 32
#define emulated_shared() (emulated_block->shared)
#define __syncthreads() emulator->sync_block()
#define __syncwarp(...) emulator->sync_warp(0xffffffffu)
#define __threadfence() __atomic_thread_fence(__ATOMIC_SEQ_CST)

static __attribute__((noinline)) unsigned int __activemask() { return emulator->active_mask(__builtin_return_address(0)); }
static inline int emulated_lane() {
    const EmulatedBlock *block = emulated_block;
    const uint3 at = block->current->index;
    return (at.x + block->dim.x * (at.y + block->dim.y * at.z)) % 32;
}
template <class T> static inline T emulated_exchange(unsigned int mask, T value, int from) {
    static_assert(sizeof(T) <= 8, "only values of up to 8 bytes are exchanged");
    unsigned long long bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    bits = emulator->exchange(mask, bits, from);
    __builtin_memcpy(&value, &bits, sizeof(T));
    return value;
}
template <class T> static inline T __shfl_sync(unsigned int mask, T value, int lane) { return emulated_exchange(mask, value, lane & 31); }
template <class T> static inline T __shfl_xor_sync(unsigned int mask, T value, int lanes) {
    return emulated_exchange(mask, value, (emulated_lane() ^ lanes) & 31);
}
template <class T> static inline T __shfl_up_sync(unsigned int mask, T value, unsigned int delta) {
    const int from = emulated_lane() - (int)delta;
    return emulated_exchange(mask, value, from < 0 ? emulated_lane() : from);
}
template <class T> static inline T __shfl_down_sync(unsigned int mask, T value, unsigned int delta) {
    const int from = emulated_lane() + (int)delta;
    return emulated_exchange(mask, value, from > 31 ? emulated_lane() : from);
}
static inline unsigned int __ballot_sync(unsigned int mask, bool value) { return emulator->ballot(mask, value); }
static inline bool __any_sync(unsigned int mask, bool value) { return emulator->ballot(mask, value) != 0; }
static inline bool __all_sync(unsigned int mask, bool value) { return emulator->ballot(mask, value) == mask; }

// Functions of numbers. The kernels call them by CUDA's overloads.
#define EMULATED_FUNCTION(name)                                                   \
    static inline float name(float x) { return __builtin_##name##f(x); }          \
    static inline double name(double x) { return __builtin_##name(x); }
EMULATED_FUNCTION(exp) EMULATED_FUNCTION(log) EMULATED_FUNCTION(sin) EMULATED_FUNCTION(cos) EMULATED_FUNCTION(tan)
EMULATED_FUNCTION(tanh) EMULATED_FUNCTION(sinh) EMULATED_FUNCTION(cosh) EMULATED_FUNCTION(acos) EMULATED_FUNCTION(asin)
EMULATED_FUNCTION(atan) EMULATED_FUNCTION(asinh) EMULATED_FUNCTION(acosh) EMULATED_FUNCTION(atanh) EMULATED_FUNCTION(sqrt)
EMULATED_FUNCTION(expm1) EMULATED_FUNCTION(ceil) EMULATED_FUNCTION(trunc) EMULATED_FUNCTION(floor) EMULATED_FUNCTION(rint)
EMULATED_FUNCTION(erf) EMULATED_FUNCTION(fabs) EMULATED_FUNCTION(log1p)
#undef EMULATED_FUNCTION
static inline float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / __builtin_sqrt(x); }
static inline float pow(float x, float y) { return __builtin_powf(x, y); }
static inline double pow(double x, double y) { return __builtin_pow(x, y); }
static inline float powf(float x, float y) { return __builtin_powf(x, y); }
static inline float fmod(float x, float y) { return __builtin_fmodf(x, y); }
static inline double fmod(double x, double y) { return __builtin_fmod(x, y); }
static inline float atan2(float x, float y) { return __builtin_atan2f(x, y); }
static inline double atan2(double x, double y) { return __builtin_atan2(x, y); }
static inline float hypot(float x, float y) { return __builtin_hypotf(x, y); }
static inline double hypot(double x, double y) { return __builtin_hypot(x, y); }
static inline float fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
static inline double fma(double x, double y, double z) { return __builtin_fma(x, y, z); }
static inline bool isnan(float x) { return __builtin_isnan(x); }
static inline bool isnan(double x) { return __builtin_isnan(x); }
static inline bool isinf(float x) { return __builtin_isinf(x); }
static inline bool isinf(double x) { return __builtin_isinf(x); }
static inline int abs(int x) { return __builtin_abs(x); }
static inline long long abs(long long x) { return __builtin_llabs(x); }
#define EMULATED_EXTREMES(type)                                          \
    static inline type min(type x, type y) { return x < y ? x : y; }     \
    static inline type max(type x, type y) { return x > y ? x : y; }
EMULATED_EXTREMES(int) EMULATED_EXTREMES(unsigned int) EMULATED_EXTREMES(long long) EMULATED_EXTREMES(unsigned long long)
#undef EMULATED_EXTREMES
// A number wins over what is none.
static inline float min(float x, float y) { return __builtin_fminf(x, y); }
static inline float max(float x, float y) { return __builtin_fmaxf(x, y); }
static inline double min(double x, double y) { return __builtin_fmin(x, y); }
static inline double max(double x, double y) { return __builtin_fmax(x, y); }
static inline float fminf(float x, float y) { return __builtin_fminf(x, y); }
static inline float fmaxf(float x, float y) { return __builtin_fmaxf(x, y); }
static inline double fmin(double x, double y) { return __builtin_fmin(x, y); }
static inline double fmax(double x, double y) { return __builtin_fmax(x, y); }

static inline int __popc(unsigned int x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(unsigned int x) { return x ? __builtin_clz(x) : 32; }
static inline int __clzll(unsigned long long x) { return x ? __builtin_clzll(x) : 64; }
static inline int __ffs(unsigned int x) { return __builtin_ffs(x); }
static inline int __ffsll(unsigned long long x) { return __builtin_ffsll(x); }
static inline unsigned int __brev(unsigned int x) {
    x = __builtin_bswap32(x);
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    return (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
}
static inline unsigned long long __brevll(unsigned long long x) {
    return (unsigned long long)__brev((unsigned int)x) << 32 | __brev((unsigned int)(x >> 32));
}
static inline int __mulhi(int x, int y) { return (int)((long long)x * y >> 32); }
static inline unsigned int __umulhi(unsigned int x, unsigned int y) { return (unsigned int)((unsigned long long)x * y >> 32); }
static inline long long __mul64hi(long long x, long long y) { return (long long)((__int128)x * y >> 64); }
static inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}

// Atomics of integers; those of floating point numbers come as PTX, which compiler.cpp turns into calls of `emulated_atom`.
#define EMULATED_ATOMIC(name, expression)                                                                        \
    template <class T> static inline T name(T *at, T value) {                                                    \
        T old = __atomic_load_n(at, __ATOMIC_RELAXED);                                                           \
        while (!__atomic_compare_exchange_n(at, &old, (expression), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) { \
        }                                                                                                        \
        return old;                                                                                              \
    }
EMULATED_ATOMIC(atomicAdd, old + value) EMULATED_ATOMIC(atomicMin, old < value ? old : value)
EMULATED_ATOMIC(atomicMax, old > value ? old : value) EMULATED_ATOMIC(atomicAnd, old & value)
EMULATED_ATOMIC(atomicOr, old | value) EMULATED_ATOMIC(atomicXor, old ^ value) EMULATED_ATOMIC(atomicExch, value)
#undef EMULATED_ATOMIC
template <class T> static inline T atomicCAS(T *at, T expected, T value) {
    __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
template <class T> struct EmulatedBits;
template <> struct EmulatedBits<float> { typedef unsigned int type; };
template <> struct EmulatedBits<double> { typedef unsigned long long type; };
template <> struct EmulatedBits<int> { typedef unsigned int type; };
template <> struct EmulatedBits<unsigned int> { typedef unsigned int type; };
template <> struct EmulatedBits<long long> { typedef unsigned long long type; };
template <> struct EmulatedBits<unsigned long long> { typedef unsigned long long type; };
enum EmulatedAtom { emulated_add, emulated_min, emulated_max };
template <EmulatedAtom op, class T> static inline T emulated_atom(const void *place, T value) {
    typedef typename EmulatedBits<T>::type Bits;
    Bits *at = (Bits *)place;
    Bits old = __atomic_load_n(at, __ATOMIC_RELAXED);
    for (;;) {
        T was, now;
        __builtin_memcpy(&was, &old, sizeof(T));
        now = op == emulated_add ? was + value : op == emulated_min ? min(was, value) : max(was, value);
        Bits bits;
        __builtin_memcpy(&bits, &now, sizeof(T));
        if (__atomic_compare_exchange_n(at, &old, bits, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return was;
    }
}

// float16: the compiler's own type, which rounds after every operation.
typedef _Float16 __half;
static inline __half __habs(__half x) { return (__half)__builtin_fabsf((float)x); }
static inline __half __hmin(__half x, __half y) { return (__half)min((float)x, (float)y); }
static inline __half __hmax(__half x, __half y) { return (__half)max((float)x, (float)y); }
static inline bool __hisnan(__half x) { return isnan((float)x); }
static inline bool __hisinf(__half x) { return isinf((float)x); }
static inline __half __hfma(__half x, __half y, __half z) { return (__half)fma((float)x, (float)y, (float)z); }

// bfloat16: computed in float32 and rounded to the nearest even.
struct __nv_bfloat16 {
    unsigned short bits;
    __nv_bfloat16() = default;
    template <class T> __nv_bfloat16(T value) {
        const float x = (float)value;
        unsigned int wide;
        __builtin_memcpy(&wide, &x, 4);
        bits = __builtin_isnan(x) ? 0x7fff : (unsigned short)((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
    }
    operator float() const {
        const unsigned int wide = (unsigned int)bits << 16;
        float x;
        __builtin_memcpy(&x, &wide, 4);
        return x;
    }
    // The same types on both sides, so that both operands of a choice are of one type.
    friend __nv_bfloat16 operator+(__nv_bfloat16 x, __nv_bfloat16 y) { return (float)x + (float)y; }
    friend __nv_bfloat16 operator-(__nv_bfloat16 x, __nv_bfloat16 y) { return (float)x - (float)y; }
    friend __nv_bfloat16 operator*(__nv_bfloat16 x, __nv_bfloat16 y) { return (float)x * (float)y; }
    friend __nv_bfloat16 operator/(__nv_bfloat16 x, __nv_bfloat16 y) { return (float)x / (float)y; }
    friend __nv_bfloat16 operator-(__nv_bfloat16 x) { return -(float)x; }
    friend bool operator==(__nv_bfloat16 x, __nv_bfloat16 y) { return (float)x == (float)y; }
    friend bool operator!=(__nv_bfloat16 x, __nv_bfloat16 y) { return (float)x != (float)y; }
    friend bool operator<(__nv_bfloat16 x, __nv_bfloat16 y) { return (float)x < (float)y; }
    friend bool operator<=(__nv_bfloat16 x, __nv_bfloat16 y) { return (float)x <= (float)y; }
    friend bool operator>(__nv_bfloat16 x, __nv_bfloat16 y) { return (float)x > (float)y; }
    friend bool operator>=(__nv_bfloat16 x, __nv_bfloat16 y) { return (float)x >= (float)y; }
};
static inline __nv_bfloat16 __habs(__nv_bfloat16 x) { return fabs((float)x); }
static inline __nv_bfloat16 __hmin(__nv_bfloat16 x, __nv_bfloat16 y) { return min((float)x, (float)y); }
static inline __nv_bfloat16 __hmax(__nv_bfloat16 x, __nv_bfloat16 y) { return max((float)x, (float)y); }
static inline bool __hisnan(__nv_bfloat16 x) { return isnan((float)x); }
static inline bool __hisinf(__nv_bfloat16 x) { return isinf((float)x); }
static inline __nv_bfloat16 __hfma(__nv_bfloat16 x, __nv_bfloat16 y, __nv_bfloat16 z) { return fma((float)x, (float)y, (float)z); }
template <class T> static inline T __hmin_nan(T x, T y) { return __hisnan(x) || __hisnan(y) ? T(__builtin_nanf("")) : __hmin(x, y); }
template <class T> static inline T __hmax_nan(T x, T y) { return __hisnan(x) || __hisnan(y) ? T(__builtin_nanf("")) : __hmax(x, y); }

// Two of them.
template <class H> struct EmulatedPair {
    H x, y;
    EmulatedPair() = default;
    EmulatedPair(H x, H y) : x(x), y(y) {}
    explicit EmulatedPair(H x) : x(x), y(x) {}
    friend EmulatedPair operator+(EmulatedPair a, EmulatedPair b) { return {H(a.x + b.x), H(a.y + b.y)}; }
    friend EmulatedPair operator-(EmulatedPair a, EmulatedPair b) { return {H(a.x - b.x), H(a.y - b.y)}; }
    friend EmulatedPair operator*(EmulatedPair a, EmulatedPair b) { return {H(a.x * b.x), H(a.y * b.y)}; }
    friend EmulatedPair operator/(EmulatedPair a, EmulatedPair b) { return {H(a.x / b.x), H(a.y / b.y)}; }
    friend EmulatedPair operator-(EmulatedPair a) { return {H(-a.x), H(-a.y)}; }
};
typedef EmulatedPair<__half> __half2;
typedef EmulatedPair<__nv_bfloat16> __nv_bfloat162;
#define EMULATED_HALVES(name, function)                                                             \
    static inline __half h##name(__half x) { return (__half)function((float)x); }                   \
    static inline __nv_bfloat16 h##name(__nv_bfloat16 x) { return function((float)x); }             \
    template <class H> static inline EmulatedPair<H> h2##name(EmulatedPair<H> a) { return {h##name(a.x), h##name(a.y)}; }
EMULATED_HALVES(exp, exp) EMULATED_HALVES(log, log) EMULATED_HALVES(sin, sin) EMULATED_HALVES(cos, cos)
EMULATED_HALVES(sqrt, sqrt) EMULATED_HALVES(rsqrt, rsqrt) EMULATED_HALVES(ceil, ceil) EMULATED_HALVES(floor, floor)
EMULATED_HALVES(trunc, trunc) EMULATED_HALVES(rint, rint) EMULATED_HALVES(tanh, tanh)
#undef EMULATED_HALVES
template <class H> static inline EmulatedPair<H> __habs2(EmulatedPair<H> a) { return {__habs(a.x), __habs(a.y)}; }
template <class H> static inline EmulatedPair<H> __hmin2(EmulatedPair<H> a, EmulatedPair<H> b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
template <class H> static inline EmulatedPair<H> __hmax2(EmulatedPair<H> a, EmulatedPair<H> b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
template <class H> static inline EmulatedPair<H> __hmin2_nan(EmulatedPair<H> a, EmulatedPair<H> b) {
    return {__hmin_nan(a.x, b.x), __hmin_nan(a.y, b.y)};
}
template <class H> static inline EmulatedPair<H> __hmax2_nan(EmulatedPair<H> a, EmulatedPair<H> b) {
    return {__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)};
}
template <class H> static inline EmulatedPair<H> __hfma2(EmulatedPair<H> a, EmulatedPair<H> b, EmulatedPair<H> c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
typedef unsigned char __nv_fp8_storage_t, __nv_fp6_storage_t, __nv_fp4_storage_t, __nv_fp4x2_storage_t;
typedef unsigned short __nv_fp8x2_storage_t, __nv_fp6x2_storage_t;

// Calls a kernel with the parameters of a launch, and says how large they are.
template <class... A> struct EmulatedCall {
    template <size_t... i> static void with(void (*kernel)(A...), void **given) { kernel(*(A *)given[i]...); }
    static void call(void (*kernel)(A...), void **given) { with<__integer_pack(sizeof...(A))...>(kernel, given); }
};
template <class... A> static void emulated_call(void (*kernel)(A...), void **given) { EmulatedCall<A...>::call(kernel, given); }
template <class... A> static size_t emulated_size(void (*)(A...), size_t i) {
    const size_t sizes[] = {sizeof(A)..., ~(size_t)0}; // no static one: all libraries would share that of the first
    return sizes[i < sizeof...(A) ? i : sizeof...(A)];
}
#define EMULATED_ENTRY(kernel)                                                                           \
    extern "C" void emulated_run(void **given) { emulated_call(&kernel, given); }                        \
    extern "C" size_t emulated_parameter(size_t i) { return emulated_size(&kernel, i); }                 \
    extern "C" void emulated_enter(EmulatedBlock *block) { emulated_block = block; }
