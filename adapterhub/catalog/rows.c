/* Rows on disk, gathered and summed up, and their numbers converted: what `_linear.InNumpy` and numpy do, with the same
   results. */

#include <errno.h>
#include <unistd.h>

/* Reads rows of `bytes` bytes at ascending places of a file, one read for each run of neighbours. Returns how many bytes
   there were, fewer than were asked for where the file ends, or the negative number of an error. */
int64_t adapterhub_gather(int file, const int64_t *places, size_t count, size_t bytes, char *found)
{
    int64_t sum = 0;
    for (size_t first = 0, next; first < count; first = next) {
        for (next = first + 1; next < count && places[next] == places[next - 1] + 1;)
            next++;
        size_t size = (next - first) * bytes;
        off_t start = (off_t)(places[first] * (int64_t)bytes);
        while (size) {
            ssize_t got = pread(file, found, size, start);
            if (got < 0 && errno == EINTR)
                continue;
            if (got <= 0)
                return got ? -(int64_t)errno : sum;
            found += got, start += got, sum += got, size -= (size_t)got;
        }
    }
    return sum;
}

/* The checksum of each of some rows: words (rows, width), odd (width,). */
void adapterhub_sums(const uint64_t *words, size_t rows, size_t width, const uint64_t *odd, uint64_t *sums)
{
    for (size_t row = 0; row < rows; row++, words += width) {
        uint64_t sum = 0;
        for (size_t word = 0; word < width; word++)
            sum += (words[word] ^ (words[word] >> 32)) * odd[word];
        sums[row] = sum;
    }
}

#if defined(__F16C__) && defined(__AVX__)
#include <immintrin.h>

/* Numbers in half precision as single ones, which is exact. */
void adapterhub_singles(const uint16_t *halves, size_t count, float *singles)
{
    size_t at = 0;
    for (; at + 8 <= count; at += 8)
        _mm256_storeu_ps(singles + at, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(halves + at))));
    for (; at < count; at++)
        singles[at] = _cvtsh_ss(halves[at]);
}

/* Numbers in single precision as halves, to the nearest, of two the even one. */
void adapterhub_halves(const float *singles, size_t count, uint16_t *halves)
{
    size_t at = 0;
    for (; at + 8 <= count; at += 8)
        _mm_storeu_si128((__m128i *)(halves + at),
                         _mm256_cvtps_ph(_mm256_loadu_ps(singles + at), _MM_FROUND_TO_NEAREST_INT));
    for (; at < count; at++)
        halves[at] = _cvtss_sh(singles[at], _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__aarch64__)
void adapterhub_singles(const __fp16 *halves, size_t count, float *singles)
{
    for (size_t at = 0; at < count; at++)
        singles[at] = halves[at];
}

void adapterhub_halves(const float *singles, size_t count, __fp16 *halves)
{
    for (size_t at = 0; at < count; at++)
        halves[at] = (__fp16)singles[at];
}
#endif
