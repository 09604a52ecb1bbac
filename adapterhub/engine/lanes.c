/* Vectors, and blocks of a row: two vectors, read and written in float32 or bfloat16.

   bfloat16 is read two numbers at a time: the even one is shifted into place, the odd one masked. So everything runs
   over blocks of two vectors, and in bfloat16 a block's even numbers come first, then its odd ones. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define BLOCK (2 * LANES)

#define ALWAYS static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef vec loose_vec __attribute__((aligned(2), may_alias)); /* rows begin anywhere */
typedef bits loose_bits __attribute__((aligned(2), may_alias));

ALWAYS vec same(float v) {
#if LANES == 16
    return (vec){v, v, v, v, v, v, v, v, v, v, v, v, v, v, v, v};
#elif LANES == 8
    return (vec){v, v, v, v, v, v, v, v};
#else
    return (vec){v, v, v, v};
#endif
}

typedef float pair __attribute__((vector_size(8)));
typedef float quad __attribute__((vector_size(16)));
typedef float octet __attribute__((vector_size(32)));

ALWAYS float total(vec v) {
#if LANES == 16
    const union { vec whole; octet part[2]; } sixteen = {v};
    const union { octet whole; quad part[2]; } eight = {sixteen.part[0] + sixteen.part[1]};
    const union { quad whole; pair part[2]; } four = {eight.part[0] + eight.part[1]};
#elif LANES == 8
    const union { vec whole; quad part[2]; } eight = {v};
    const union { quad whole; pair part[2]; } four = {eight.part[0] + eight.part[1]};
#else
    const union { vec whole; pair part[2]; } four = {v};
#endif
    const pair two = four.part[0] + four.part[1];
    return two[0] + two[1];
}

/* One block of a row, `count` numbers of it: the rest is zero. */
ALWAYS void read_block(const char *row, int64_t at, int64_t count, int half, vec *low, vec *high) {
    if (half) {
        bits both;
        const char *from = row + 2 * at;
        if (count == BLOCK) {
            both = *(const loose_bits *)from;
        } else {
            memset(&both, 0, sizeof both);
            memcpy(&both, from, 2 * count);
        }
        *low = (vec)(both << 16);
        *high = (vec)(both & 0xffff0000u);
    } else {
        const char *from = row + 4 * at;
        if (count == BLOCK) {
            *low = *(const loose_vec *)from;
            *high = *(const loose_vec *)(from + sizeof(vec));
        } else {
            vec both[2];
            memset(both, 0, sizeof both);
            memcpy(both, from, 4 * count);
            *low = both[0];
            *high = both[1];
        }
    }
}

/* Start to bring a block of a row nearer; any address will do. */
ALWAYS void expect_block(const char *row, int64_t at, int half) {
    const char *from = row + at * (half ? 2 : 4);
    __builtin_prefetch(from);
    if (!half) __builtin_prefetch(from + sizeof(vec));
}

/* float32 to the upper half of its bits, to the nearest, ties to even. */
ALWAYS bits rounded(vec v) {
    const bits raw = (bits)v;
    const bits near = raw + 0x7fffu + ((raw >> 16) & 1u);
    const bits nan = (bits)(v != v);
    return (near & ~nan) | (nan & 0x7fc00000u);
}

/* Add sums to one block of a row. */
ALWAYS void add_block(char *row, int64_t at, int64_t count, int half, vec low, vec high) {
    vec old_low, old_high;
    read_block(row, at, count, half, &old_low, &old_high);
    low += old_low;
    high += old_high;
    if (half) {
        const bits both = (rounded(low) >> 16) | (rounded(high) & 0xffff0000u);
        memcpy(row + 2 * at, &both, 2 * count);
    } else {
        const vec both[2] = {low, high};
        memcpy(row + 4 * at, both, 4 * count);
    }
}

#define EACH(i, n) _Pragma("GCC unroll 8") for (int i = 0; i < (n); i++)

/* One block as `add_dot` takes it: where the processor multiplies pairs of bfloat16, these as they are. */
ALWAYS void read_pairs(const char *row, int64_t at, int64_t count, int half, vec *low, vec *high) {
#if defined(__AVX512BF16__)
    if (half) {
        vec both;
        if (count == BLOCK) {
            both = *(const loose_vec *)(row + 2 * at);
        } else {
            memset(&both, 0, sizeof both);
            memcpy(&both, row + 2 * at, 2 * count);
        }
        *low = *high = both;
        return;
    }
#endif
    read_block(row, at, count, half, low, high);
}

/* sum + the products of two blocks, lane by lane. */
ALWAYS vec add_dot(vec sum, vec low, vec high, vec other_low, vec other_high, int half) {
#if defined(__AVX512BF16__)
    if (half) return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)low, (__m512bh)other_low);
#endif
    (void)half;
    sum += low * other_low;
    sum += high * other_high;
    return sum;
}
