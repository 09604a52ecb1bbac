/* Sums over a few ranks, columns and tokens at a time, as many as the registers hold. */

#if defined(__AVX512F__) || defined(__aarch64__) /* 32 registers */
#define DOWN_USERS 3
#define UP_USERS 4
#else /* 16 */
#define DOWN_USERS 1
#define UP_USERS 2
#endif
#define UNIT 8 /* ranks whose dot products are taken together */

/* One module's factors: down is (rows, d_in), up is (rows, d_out); bfloat16 where `half`. */
typedef struct {
    const char *down, *up;
    int64_t d_in, d_out, half;
} bank_t;

/* One adapter for a tile of tokens: its rows of up, what will be read next, and h of (users, rank). */
typedef struct {
    const char *up, *next;
    const float *h;
    int64_t rank;
} source_t;

/* Dot products of `ranks` rows of down with `users` rows of x, times the gates, to h. As many rows at `next` will be
   read next, and are asked for in the order of memory. */
ALWAYS void dots(const int ranks, const int users, const int half, const char *down, int64_t d_in,
                 const char *const *x, const float *gate, float *h, int64_t rank, const char *next) {
    const int64_t stride = d_in * (half ? 2 : 4), full = d_in / BLOCK * BLOCK;
    vec sum[UNIT][DOWN_USERS], low[DOWN_USERS], high[DOWN_USERS], even, odd;
    EACH(r, ranks) EACH(u, users) sum[r][u] = same(0);
    for (int64_t at = 0; at < full; at += BLOCK) {
        EACH(u, users) read_pairs(x[u], at, BLOCK, half, &low[u], &high[u]);
        EACH(r, ranks) {
            read_pairs(down + r * stride, at, BLOCK, half, &even, &odd);
            expect_block(next, at * ranks + r * BLOCK, half);
            EACH(u, users) sum[r][u] = add_dot(sum[r][u], even, odd, low[u], high[u], half);
        }
    }
    if (full < d_in) {
        EACH(u, users) read_pairs(x[u], full, d_in - full, half, &low[u], &high[u]);
        EACH(r, ranks) {
            read_pairs(down + r * stride, full, d_in - full, half, &even, &odd);
            EACH(u, users) sum[r][u] = add_dot(sum[r][u], even, odd, low[u], high[u], half);
        }
    }
    EACH(u, users) EACH(r, ranks) h[u * rank + r] = total(sum[r][u]) * gate[u];
}

/* Add h times up of all sources, in `blocks` blocks of columns, the last one of `count` numbers, to the tokens' rows
   `to` from column `to_at`: to y, or to sums, which begin where they ended and have whole blocks. */
ALWAYS void mix(const int blocks, const int users, const int half, const int to_y, const source_t *from,
                int64_t sources, int64_t stride, int64_t at, int64_t count, char *const *to, int64_t to_at) {
    vec low[UP_USERS][2], high[UP_USERS][2], here[UP_USERS], even, odd;
    EACH(u, users) EACH(b, blocks) {
        low[u][b] = high[u][b] = same(0);
        if (!to_y) read_block(to[u], to_at + b * BLOCK, BLOCK, 0, &low[u][b], &high[u][b]);
    }
    for (const source_t *end = from + sources; from < end; from++) {
        const float *h = from->h;
        const char *up = from->up, *next = from->next;
        for (int64_t r = 0; r < from->rank; r++, up += stride, next += stride) {
            EACH(u, users) here[u] = same(h[u * from->rank + r]);
            EACH(b, blocks) {
                read_block(up, at + b * BLOCK, b == blocks - 1 ? count : BLOCK, half, &even, &odd);
                expect_block(next, at + b * BLOCK, half);
                EACH(u, users) {
                    low[u][b] += here[u] * even;
                    high[u][b] += here[u] * odd;
                }
            }
        }
    }
    EACH(u, users) EACH(b, blocks) {
        if (to_y) {
            add_block(to[u], to_at + b * BLOCK, b == blocks - 1 ? count : BLOCK, half, low[u][b], high[u][b]);
        } else {
            loose_vec *sums = (loose_vec *)(to[u] + 4 * (to_at + b * BLOCK));
            sums[0] = low[u][b];
            sums[1] = high[u][b];
        }
    }
}

#if DOWN_USERS >= 3
#define BY_DOWN_USERS(DO) switch (users) { case 3: DO(3); break; case 2: DO(2); break; default: DO(1); }
#else
#define BY_DOWN_USERS(DO) (void)users; DO(1);
#endif
#if UP_USERS >= 4
#define BY_UP_USERS(DO) \
    switch (users) { case 4: DO(4); break; case 3: DO(3); break; case 2: DO(2); break; default: DO(1); }
#else
#define BY_UP_USERS(DO) switch (users) { case 2: DO(2); break; default: DO(1); }
#endif

/* The same for any number of ranks up to UNIT, in tiles. */
ALWAYS void dots_of(const int half, const bank_t *bank, int64_t row, int64_t ranks, const char *const *x, int users,
                    const float *gate, float *h, int64_t rank, const char *next) {
    const int64_t stride = bank->d_in * (half ? 2 : 4);
    const char *down = bank->down + row * stride;
    while (ranks) {
#define DOTS(R, U) dots(R, U, half, down, bank->d_in, x, gate, h, rank, next ? next : down)
#define DOTS_UNIT(U) DOTS(UNIT, U)
#define DOTS_HALF(U) DOTS(UNIT / 2, U)
#define DOTS_ONE(U) DOTS(1, U)
        const int64_t step = ranks >= UNIT ? UNIT : ranks >= UNIT / 2 ? UNIT / 2 : 1;
        if (step == UNIT) {
            BY_DOWN_USERS(DOTS_UNIT)
        } else if (step == UNIT / 2) {
            BY_DOWN_USERS(DOTS_HALF)
        } else {
            BY_DOWN_USERS(DOTS_ONE)
        }
        ranks -= step;
        h += step;
        down += step * stride;
        if (next) next += step * stride;
    }
}

/* The same for any number of columns, in tiles. */
ALWAYS void mix_of(const int half, const int to_y, const source_t *from, int64_t sources, int64_t stride, int64_t at,
                   int64_t columns, int users, char *const *to, int64_t to_at) {
#define MIX(B, U, N) mix(B, U, half, to_y, from, sources, stride, at, N, to, to_at)
#define MIX_TWO(U) MIX(2, U, BLOCK)
#define MIX_ONE(U) MIX(1, U, BLOCK)
#define MIX_PART(U) MIX(1, U, left)
    for (int64_t left = columns, step; left > 0; left -= step, at += step, to_at += step) {
        step = left >= 2 * BLOCK ? 2 * BLOCK : BLOCK;
        if (left >= 2 * BLOCK) {
            BY_UP_USERS(MIX_TWO)
        } else if (left >= BLOCK) {
            BY_UP_USERS(MIX_ONE)
        } else {
            BY_UP_USERS(MIX_PART)
        }
    }
}
