/* Differing bits of codes, counted: what `_counting.InNumpy` does, with the same results, in a third of the time. */

#include <stddef.h>
#include <stdint.h>

#define WORDS 4  /* of signs */
#define DIGITS 4 /* of a query */
#define MOST 1024 /* rows of a block */
#define SOME 8
#define AHEAD 32 /* rows that are fetched before they are needed */

/* Rows with no more differing signs than their block's threshold.

   planes (chunks, WORDS, chunk); signs (queries, WORDS); thresholds (chunks, queries, chunk / block), block a multiple
   of SOME and at most MOST. The rows found and how many of their signs differ go to found and differing, which have room
   for all; where those of each chunk and query end, to ends (chunks, queries). */
void adapterhub_scan(const uint64_t *planes, size_t chunks, size_t chunk, const uint64_t *signs, size_t queries,
                     const uint8_t *thresholds, size_t block, int64_t *found, uint8_t *differing, int64_t *ends)
{
    size_t count = 0;
    for (size_t number = 0; number < chunks; number++, planes += WORDS * chunk)
        for (size_t query = 0; query < queries; query++) {
            const uint64_t *sign = signs + WORDS * query;
            for (size_t start = 0; start < chunk; start += block) {
                const uint64_t *plane = planes + start;
                const uint8_t most = *thresholds++;
                uint8_t counts[MOST];
                for (size_t row = 0; row < block; row++) {
                    int bits = 0;
                    for (size_t word = 0; word < WORDS; word++)
                        bits += __builtin_popcountll(plane[word * chunk + row] ^ sign[word]);
                    counts[row] = (uint8_t)bits;
                }
                for (size_t first = 0; first < block; first += SOME) {
                    int any = 0;
                    for (size_t row = first; row < first + SOME; row++)
                        any |= counts[row] <= most;
                    if (any)
                        for (size_t row = first; row < first + SOME; row++) {
                            found[count] = (int64_t)(number * chunk + start + row);
                            differing[count] = counts[row];
                            count += counts[row] <= most;
                        }
                }
            }
            *ends++ = (int64_t)count;
        }
}

/* How much all digits of some codes and of a query differ: codes (n, 2, WORDS), rows (count,), signs (DIGITS, WORDS). */
void adapterhub_differ(const uint64_t *codes, const int64_t *rows, size_t count, const uint64_t *signs,
                       float *differing)
{
    uint64_t both[DIGITS][2 * WORDS];
    for (size_t digit = 0; digit < DIGITS; digit++)
        for (size_t word = 0; word < 2 * WORDS; word++)
            both[digit][word] = signs[WORDS * digit + word % WORDS];
    for (size_t row = 0; row < count; row++) {
        const uint64_t *code = codes + 2 * WORDS * rows[row];
        if (row + AHEAD < count) { /* they may lie in two lines of the cache */
            const uint64_t *later = codes + 2 * WORDS * rows[row + AHEAD];
            __builtin_prefetch(later);
            __builtin_prefetch(later + 2 * WORDS - 1);
        }
        uint64_t bits[2 * WORDS] = {0};
        for (size_t digit = 0; digit < DIGITS; digit++)
            for (size_t word = 0; word < 2 * WORDS; word++)
                bits[word] += (uint64_t)__builtin_popcountll(code[word] ^ both[digit][word]) << digit;
        uint64_t total = 0;
        for (size_t word = 0; word < WORDS; word++)
            total += 2 * bits[word] + bits[WORDS + word];
        differing[row] = (float)total;
    }
}
