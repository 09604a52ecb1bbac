/* The low-rank sums of one module, for rows that have their own adapters and gates:

       y[row] += sum over the row's adapters of  gate * (x[row] . down^T) . up

   Factors are read where the arena holds them, each once, whatever its rank; nothing is gathered or padded. What
   Punica's kernels (Chen et al. 2023) are to a GPU, this is to a CPU. Numbers are float32, or bfloat16 that is computed
   in float32 and rounded once. A row's bits depend neither on the other rows nor on the number of threads: every dot
   product and every sum has one order.

   A step is bound by memory, so whatever is read next is asked for while something else is computed. */

#define SCRATCH (32 << 10) /* bytes of sums that a thread keeps near the core */
#define SHARE 60000        /* multiply-adds that are worth a thread */

/* Which adapters which tokens use: the same at all modules whose slices are the same. All numbers are int64.

   The activations are computed by unit, so that every adapter is read once. The outputs are computed by block: tokens
   whose sums are held near the core while the adapters' spans are added. One token a row is one block for all rows. */
typedef struct {
    int64_t units, groups, blocks;
    int64_t hidden;       /* activations in all: of every user of a group, its ranks */
    int64_t most;         /* tokens of the largest block */
    int64_t alike;        /* whether every token of a block is a user in all its spans, in the same order */
    const int64_t *unit;  /* (units, 3): group, first of up to UNIT ranks, activations before */
    const int64_t *group; /* (groups, 5): first row of the bank, rank, first user, users, activations before */
    const int64_t *span;  /* (spans, 3): group, first user, users */
    const int64_t *block; /* (blocks + 1, 2): first span, first place in `token`; where the last one ends */
    const int64_t *user;  /* (users,): place in `token` */
    const float *gate;    /* (users,) */
    const int64_t *token; /* (touched,): rows of x and y, each once */
} jobs_t;

typedef struct {
    const jobs_t *jobs;
    const bank_t *bank;
    const char *x;
    char *y;
    float *h;    /* (hidden,): each group's (users, rank), times the gates */
    float *sums; /* (threads, tokens of the largest block, columns), where these are not alike */
    source_t *sources; /* (threads, groups), where they are */
    int64_t columns;
    int first, second; /* which halves of the work are done */
} task_t;

typedef void (*parallel_t)(void (*)(void *), void *, unsigned, unsigned);
static parallel_t parallel;
static int (*team_size)(void), (*member)(void);
static void (*barrier)(void);

/* Let the work run in the threads of an OpenMP runtime: torch's own, so that there is one pool. */
void adapterhub_threads(parallel_t run, int (*size)(void), int (*number)(void), void (*wait)(void)) {
    team_size = size;
    member = number;
    barrier = wait;
    parallel = run;
}

static int64_t padded(int64_t width) { return (width + BLOCK - 1) / BLOCK * BLOCK; }

/* The activations of up to UNIT ranks of one adapter, of all its users. */
static void run_unit(const task_t *task, int64_t unit) {
    const jobs_t *jobs = task->jobs;
    const bank_t *bank = task->bank;
    const int64_t *group = jobs->group + 5 * jobs->unit[3 * unit], *after = jobs->unit + 3 * (unit + 1);
    const int64_t from = jobs->unit[3 * unit + 1], rank = group[1], size = bank->half ? 2 : 4;
    const int64_t ranks = rank - from < UNIT ? rank - from : UNIT;
    const char *next = unit + 1 < jobs->units ? bank->down + (jobs->group[5 * after[0]] + after[1]) * bank->d_in * size
                                              : bank->up + jobs->group[0] * bank->d_out * size;
    float *h = task->h + group[4] + from;
    for (int64_t user = 0; user < group[3]; user += DOWN_USERS, h += DOWN_USERS * rank, next = NULL) {
        const int users = (int)(group[3] - user < DOWN_USERS ? group[3] - user : DOWN_USERS);
        const float *gate = jobs->gate + group[2] + user;
        const char *x[DOWN_USERS];
        for (int u = 0; u < users; u++)
            x[u] = task->x + jobs->token[jobs->user[group[2] + user + u]] * bank->d_in * size;
        if (bank->half)
            dots_of(1, bank, group[0] + from, ranks, x, users, gate, h, rank, next);
        else
            dots_of(0, bank, group[0] + from, ranks, x, users, gate, h, rank, next);
    }
}

/* The outputs of tokens that use the same adapters, in some columns: all adapters at once, straight to y. */
static void run_alike(const task_t *task, const int64_t *block, int64_t at, int64_t columns, source_t *from) {
    const jobs_t *jobs = task->jobs;
    const bank_t *bank = task->bank;
    const int64_t stride = bank->d_out * (bank->half ? 2 : 4), sources = block[2] - block[0];
    for (int64_t place = block[1]; place < block[3]; place += UP_USERS) {
        const int users = (int)(block[3] - place < UP_USERS ? block[3] - place : UP_USERS);
        char *rows[UP_USERS];
        for (int u = 0; u < users; u++) rows[u] = task->y + jobs->token[place + u] * stride;
        for (int64_t i = 0; i < sources; i++) {
            const int64_t *span = jobs->span + 3 * (block[0] + i), *group = jobs->group + 5 * span[0];
            const char *up = bank->up + group[0] * stride;
            const float *h = task->h + group[4] + (span[1] - group[2] + place - block[1]) * group[1];
            from[i] = (source_t){up, up, h, group[1]};
        }
        if (bank->half)
            mix_of(1, 1, from, sources, stride, at, columns, users, rows, at);
        else
            mix_of(0, 1, from, sources, stride, at, columns, users, rows, at);
    }
}

/* The outputs of any tokens, in some columns: one adapter after another for all its users, to sums near the core. */
static void run_mixed(const task_t *task, const int64_t *block, int64_t at, int64_t columns, float *sums) {
    const jobs_t *jobs = task->jobs;
    const bank_t *bank = task->bank;
    const int half = (int)bank->half;
    const int64_t size = half ? 2 : 4, stride = bank->d_out * size;
    const int64_t *const begin = jobs->span + 3 * block[0], *const end = jobs->span + 3 * block[2];
    memset(sums, 0, 4 * (block[3] - block[1]) * task->columns);
    for (const int64_t *span = begin; span < end; span += 3) {
        const int64_t *group = jobs->group + 5 * span[0];
        const int64_t *after = jobs->group + 5 * (span + 3 < end ? span[3] : begin[0]);
        const char *up = bank->up + group[0] * stride;
        const char *next = bank->up + after[0] * stride + (span + 3 < end ? 0 : columns * size);
        const float *h = task->h + group[4] + (span[1] - group[2]) * group[1];
        for (int64_t user = 0; user < span[2]; user += UP_USERS, next = up) {
            const int users = (int)(span[2] - user < UP_USERS ? span[2] - user : UP_USERS);
            const source_t from = {up, next, h + user * group[1], group[1]};
            char *rows[UP_USERS];
            for (int u = 0; u < users; u++)
                rows[u] = (char *)(sums + (jobs->user[span[1] + user + u] - block[1]) * task->columns);
            if (half)
                mix_of(1, 0, &from, 1, stride, at, columns, users, rows, 0);
            else
                mix_of(0, 0, &from, 1, stride, at, columns, users, rows, 0);
        }
    }
    for (int64_t place = block[1]; place < block[3]; place++, sums += task->columns) {
        char *row = task->y + jobs->token[place] * stride;
        for (int64_t column = 0; column < columns; column += BLOCK) {
            const int64_t count = columns - column < BLOCK ? columns - column : BLOCK;
            const vec low = *(const loose_vec *)(sums + column), high = *(const loose_vec *)(sums + column + LANES);
            add_block(row, at + column, count, half, low, high);
        }
    }
}

/* What one of `size` threads does; only a team has a barrier. Many blocks are shared out whole, few by columns. */
static void work(const task_t *task, int64_t size, int64_t number) {
    const jobs_t *jobs = task->jobs;
    if (task->first) {
        const int64_t begin = jobs->hidden * number / size, end = jobs->hidden * (number + 1) / size;
        for (int64_t i = 0; i < jobs->units; i++)
            if (jobs->unit[3 * i + 2] >= begin && jobs->unit[3 * i + 2] < end) run_unit(task, i);
        if (task->second && size > 1) barrier();
    }
    if (task->second) {
        const int whole = jobs->blocks >= size;
        const int64_t from = whole ? jobs->blocks * number / size : 0;
        const int64_t to = whole ? jobs->blocks * (number + 1) / size : jobs->blocks;
        const int64_t parts = whole ? 1 : size, part = whole ? 0 : number;
        const int64_t pieces = padded(task->bank->d_out) / BLOCK, width = task->bank->d_out;
        const int64_t last = pieces * (part + 1) / parts * BLOCK, end = last < width ? last : width;
        float *sums = task->sums + number * jobs->most * task->columns;
        source_t *sources = task->sources + number * jobs->groups;
        for (const int64_t *block = jobs->block + 2 * from; block < jobs->block + 2 * to; block += 2)
            for (int64_t at = pieces * part / parts * BLOCK; at < end; at += task->columns) {
                const int64_t columns = end - at < task->columns ? end - at : task->columns;
                if (jobs->alike)
                    run_alike(task, block, at, columns, sources);
                else
                    run_mixed(task, block, at, columns, sums);
            }
    }
}

static void work_in_team(void *task) { work(task, team_size(), member()); }

static int run(task_t *task, int threads) {
    const jobs_t *jobs = task->jobs;
    const bank_t *bank = task->bank;
    const int64_t worth = 1 + jobs->hidden * (bank->d_in + bank->d_out) / SHARE;
    if (!parallel || threads < 1) threads = 1;
    if (threads > worth) threads = (int)worth;
    if (!jobs->blocks) return 0;
    const int64_t share = padded((bank->d_out + threads - 1) / threads) + BLOCK;
    const int64_t tokens = jobs->alike ? UP_USERS : jobs->most, near = SCRATCH / 4 / tokens / (2 * BLOCK) * (2 * BLOCK);
    task->columns = near < 2 * BLOCK ? 2 * BLOCK : near < share ? near : share;
    const int64_t sources = jobs->alike ? threads * jobs->groups * sizeof(source_t) : 0;
    const int64_t sums = jobs->alike || !task->second ? 0 : threads * jobs->most * task->columns;
    char *memory = malloc(sources + 4 * (sums + jobs->hidden));
    if (!memory) return 1;
    task->sources = (source_t *)memory;
    task->sums = (float *)(memory + sources);
    if (!task->h) task->h = task->sums + sums;
    if (threads > 1)
        parallel(work_in_team, task, (unsigned)threads, 0);
    else
        work(task, 1, 0);
    free(memory);
    return 0;
}

/* y += sum. All three return 0, or 1 where memory is short and nothing was written. */
int adapterhub_apply(const jobs_t *jobs, const bank_t *bank, const void *x, void *y, int threads) {
    task_t task = {.jobs = jobs, .bank = bank, .x = x, .y = y, .first = 1, .second = 1};
    return run(&task, threads);
}

/* The first half alone, to h of (hidden,). */
int adapterhub_read(const jobs_t *jobs, const bank_t *bank, const void *x, float *h, int threads) {
    task_t task = {.jobs = jobs, .bank = bank, .x = x, .h = h, .first = 1};
    return run(&task, threads);
}

/* The second half, from what `adapterhub_read` gave. */
int adapterhub_add(const jobs_t *jobs, const bank_t *bank, float *h, void *y, int threads) {
    task_t task = {.jobs = jobs, .bank = bank, .y = y, .h = h, .second = 1};
    return run(&task, threads);
}
