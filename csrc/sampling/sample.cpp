// SPDX-License-Identifier: Apache-2.0
// One token from one row of logits. No sort of the vocabulary: whoever survives top_k, top_p or top_logprobs is found by
// a coarse cut below the greatest logit, gathered in token-id order, and then cut exactly by bisection on float bits.
#include "sampling.h"

#include "philox.h"
#include "rows.h"

namespace linnet::LINNET_TIER {

// Tokens in id order with what they are ranked by and their mass exp(key - greatest key). ids null: token i is i.
struct Candidates {
    int64_t count = 0;
    int32_t* ids = nullptr;
    float* keys = nullptr;
    float* masses = nullptr;
    int64_t id(int64_t i) const { return ids == nullptr ? i : ids[i]; }
};

static int64_t padded(int64_t n) { return divide_up(n, 16) * 16; }

static int64_t scratch_bytes(const SampleRow& row) {
    // Full keys and masses, gathered ids, keys and masses, marks of seen tokens: one int or float per token each.
    return 6 * padded(row.vocabulary) * 4;
}

// ---- mask, bias, penalties

static bool adjusted(const SampleRow& row) {
    return row.allowed != nullptr || row.bias_count > 0 ||
           (row.repetition_penalty != 1.0f && row.history_count > 0) ||
           ((row.presence_penalty != 0.0f || row.frequency_penalty != 0.0f) && row.generated_count > 0);
}

static void adjust(const SampleRow& row, float* logits, int32_t* marks) {
    std::memcpy(logits, row.logits, size_t(row.vocabulary) * 4);
    if (row.allowed != nullptr) {
        for (int64_t id = 0; id < row.vocabulary; ++id)
            if (((row.allowed[id / 32] >> (id % 32)) & 1) == 0) logits[id] = MINUS_INFINITY;
    }
    for (int64_t i = 0; i < row.bias_count; ++i) logits[row.bias_ids[i]] += row.bias_values[i];
    if (row.repetition_penalty != 1.0f) {
        for (int64_t i = 0; i < row.history_count; ++i) marks[row.history[i]] = 0;
        for (int64_t i = 0; i < row.history_count; ++i) {
            const int32_t id = row.history[i];
            if (marks[id]++ != 0) continue;
            logits[id] = logits[id] > 0.0f ? logits[id] / row.repetition_penalty : logits[id] * row.repetition_penalty;
        }
    }
    for (int64_t i = 0; i < row.generated_count; ++i) marks[row.generated[i]] = 0;
    for (int64_t i = 0; i < row.generated_count; ++i) ++marks[row.generated[i]];
    for (int64_t i = 0; i < row.generated_count; ++i) {
        const int32_t id = row.generated[i];
        if (marks[id] == 0) continue;
        const float frequency = row.frequency_penalty * float(marks[id]);
        logits[id] = logits[id] - frequency;
        logits[id] = logits[id] - row.presence_penalty;
        marks[id] = 0;
    }
}

// ---- cuts

static int64_t count_from(const Candidates& c, float threshold) {
    Ints counts = splat_int(0);
    const Floats limit = splat(threshold);
    for (int64_t i = 0; i < c.count; i += 16) {
        const Floats keys = load_first(c.keys + i, c.count - i);
        const Ints kept = select(less(keys, limit), splat_int(0), splat_int(1));
        counts = counts + (i + 16 <= c.count ? kept : select(first_lanes(c.count - i), kept, splat_int(0)));
    }
    alignas(64) int32_t lanes[16];
    store_ints(lanes, counts);
    int64_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += lanes[i];
    return sum;
}

static double mass_from(const Candidates& c, float threshold) {
    const Floats limit = splat(threshold);
    double sum = 0.0;
    for (int64_t run = 0; run < c.count; run += RUN) {
        Floats lanes = splat(0.0f);
        for (int64_t i = run; i < smaller(c.count, run + RUN); i += 16) {
            const Floats keys = load_first(c.keys + i, c.count - i);
            const Floats masses = load_first(c.masses + i, c.count - i);
            lanes = lanes + select(less(keys, limit), splat(0.0f), masses);
        }
        sum += double(total(lanes));
    }
    return sum;
}

// How much of the best candidates is wanted: a number of them, or a share of the mass.
struct Wanted {
    int64_t count;  // 0: by mass
    double mass;
    bool reached(const Candidates& c, float threshold) const {
        return count > 0 ? count_from(c, threshold) >= count : mass_from(c, threshold) >= mass;
    }
};

// Candidates with key >= threshold, in id order, into `out` (which may be `c` itself when c is gathered).
static void gather(const Candidates& c, float threshold, Candidates& out) {
    int64_t count = 0;
    const Floats minus = splat(MINUS_INFINITY);
    for (int64_t i = 0; i < c.count; i += 16) {
        const int64_t here = smaller(16, c.count - i);
        const Floats keys = load_first(c.keys + i, here);
        if (top(here == 16 ? keys : select(first_lanes(here), keys, minus)) < threshold) continue;
        for (int64_t j = i; j < i + here; ++j) {
            if (c.keys[j] < threshold) continue;
            out.ids[count] = int32_t(c.id(j));
            out.keys[count] = c.keys[j];
            if (c.masses != nullptr) out.masses[count] = c.masses[j];
            ++count;
        }
    }
    out.count = count;
}

// A superset of what is wanted: the first of a few distances below the greatest key that reaches it.
static void gather_enough(const Candidates& all, float greatest_key, const Wanted& wanted, Candidates& out) {
    float threshold = MINUS_INFINITY;
    for (float distance = 1.0f; distance <= 128.0f; distance *= 2.0f) {
        if (!wanted.reached(all, greatest_key - distance)) continue;
        threshold = greatest_key - distance;
        break;
    }
    gather(all, threshold, out);
}

// Order-preserving map between floats (not NaN) and integers; -0 counts as +0.
static int64_t ordered(float value) {
    const int32_t bits = int32_t(float_to_bits(value));
    return bits >= 0 ? bits : -int64_t(bits & 0x7fffffff);
}
static float from_ordered(int64_t key) {
    return bits_to_float(key >= 0 ? uint32_t(key) : uint32_t(-key) | 0x80000000u);
}

// The greatest threshold whose candidates reach what is wanted (all of c does).
static float exact_threshold(const Candidates& c, const Wanted& wanted) {
    int64_t low = ordered(MINUS_INFINITY), high = ordered(greatest_of(c.keys, c.count).value);
    while (low < high) {
        const int64_t middle = low + (high - low + 1) / 2;
        if (wanted.reached(c, from_ordered(middle)))
            low = middle;
        else
            high = middle - 1;
    }
    return from_ordered(low);
}

// Removes from c (gathered) all below the threshold, and of those equal to it all but the first `ties`.
static void keep(Candidates& c, float threshold, int64_t ties) {
    int64_t count = 0;
    for (int64_t i = 0; i < c.count; ++i) {
        if (c.keys[i] < threshold || (c.keys[i] == threshold && ties-- <= 0)) continue;
        c.ids[count] = c.ids[i];
        c.keys[count] = c.keys[i];
        if (c.masses != nullptr) c.masses[count] = c.masses[i];
        ++count;
    }
    c.count = count;
}

// The same for candidates strictly above the threshold.
static int64_t count_above(const Candidates& c, float threshold) {
    return threshold == -MINUS_INFINITY ? 0 : count_from(c, from_ordered(ordered(threshold) + 1));
}
static double mass_above(const Candidates& c, float threshold) {
    return threshold == -MINUS_INFINITY ? 0.0 : mass_from(c, from_ordered(ordered(threshold) + 1));
}

static void keep_top_k(Candidates& c, int64_t k) {
    if (c.count <= k) return;
    const float threshold = exact_threshold(c, {k, 0.0});
    keep(c, threshold, k - count_above(c, threshold));
}

// Keeps the most likely as long as the mass before them is below top_p of all; the first always stays.
static void keep_top_p(Candidates& c, double limit) {
    const float threshold = exact_threshold(c, {0, limit});
    double before = mass_above(c, threshold);
    int64_t ties = 0;
    for (int64_t i = 0; i < c.count; ++i) {
        if (c.keys[i] != threshold || !(before < limit)) continue;
        before += double(c.masses[i]);
        ++ties;
    }
    keep(c, threshold, larger(ties, 1));
}

// ---- the draw

static int32_t draw(const Candidates& c, double number) {
    if (c.ids != nullptr) {
        double sum = 0.0;
        for (int64_t i = 0; i < c.count; ++i) sum += double(c.masses[i]);
        const double target = number * sum;
        double below = 0.0;
        for (int64_t i = 0; i < c.count; ++i) {
            below += double(c.masses[i]);
            if (below > target) return c.ids[i];
        }
        return c.ids[c.count - 1];
    }
    const double target = number * mass_from(c, MINUS_INFINITY);
    double below = 0.0;
    int64_t last = 0;  // the last token with any mass, should rounding lead past the end
    for (int64_t run = 0; run < c.count; run += RUN) {
        const int64_t end = smaller(c.count, run + RUN);
        const Candidates part = {end - run, nullptr, c.keys + run, c.masses + run};
        const double mass = mass_from(part, MINUS_INFINITY);
        if (below + mass > target) {
            double within = below;
            for (int64_t i = run; i < end; ++i) {
                within += double(c.masses[i]);
                if (c.masses[i] > 0.0f) last = i;
                if (within > target) return int32_t(i);
            }
            return int32_t(last);
        }
        if (mass > 0.0)
            for (int64_t i = run; i < end; ++i)
                if (c.masses[i] > 0.0f) last = i;
        below += mass;
    }
    return int32_t(last);
}

static int32_t choose(const SampleRow& row, const float* logits, const Greatest& peak, const Candidates& full,
                      Candidates gathered) {
    if (peak.value == MINUS_INFINITY || peak.index < 0) return -1;
    if (row.temperature == 0.0f || peak.value == -MINUS_INFINITY) return peak.index;
    const int64_t n = row.vocabulary;
    const Floats divisor = splat(row.temperature);
    const float greatest_key = peak.value / row.temperature;
    for (int64_t i = 0; i < n; i += 16) {
        const Floats key = load_first(logits + i, n - i) / divisor;
        store_first(full.keys + i, n - i, key);
        store_first(full.masses + i, n - i, exponential(key - splat(greatest_key)));
    }
    Candidates kept = full;
    if (row.top_k > 0 && row.top_k < n) {
        gather_enough(full, greatest_key, {row.top_k, 0.0}, gathered);
        keep_top_k(gathered, row.top_k);
        kept = gathered;
    }
    if (row.top_p < 1.0f) {
        const double limit = double(row.top_p) * mass_from(kept, MINUS_INFINITY);
        if (kept.ids == nullptr) {
            gather_enough(full, greatest_key, {0, limit}, gathered);
            kept = gathered;
        }
        keep_top_p(kept, limit);
    }
    if (row.min_p > 0.0f) {
        Candidates target = gathered;
        int64_t count = 0;
        for (int64_t i = 0; i < kept.count; ++i) {
            if (kept.masses[i] < row.min_p) continue;
            target.ids[count] = int32_t(kept.id(i));
            target.masses[count++] = kept.masses[i];
        }
        target.count = count;
        kept = target;
    }
    return draw(kept, uniform_number(row.seed, row.position, row.purpose));
}

// ---- log-probabilities of the raw distribution

// Heap order: the root is the worst (least key, of equal ones the highest id).
static bool worse(const Candidates& c, int64_t a, int64_t b) {
    return c.keys[a] != c.keys[b] ? c.keys[a] < c.keys[b] : c.ids[a] > c.ids[b];
}
static void exchange(Candidates& c, int64_t a, int64_t b) {
    const int32_t id = c.ids[a];
    const float key = c.keys[a];
    c.ids[a] = c.ids[b];
    c.keys[a] = c.keys[b];
    c.ids[b] = id;
    c.keys[b] = key;
}
static void sink(Candidates& c, int64_t place, int64_t count) {
    for (;;) {
        int64_t child = 2 * place + 1;
        if (child >= count) return;
        if (child + 1 < count && worse(c, child + 1, child)) ++child;
        if (!worse(c, child, place)) return;
        exchange(c, child, place);
        place = child;
    }
}
static void sort_best_first(Candidates& c) {
    for (int64_t i = c.count / 2 - 1; i >= 0; --i) sink(c, i, c.count);
    for (int64_t end = c.count - 1; end > 0; --end) {
        exchange(c, 0, end);
        sink(c, 0, end);
    }
}

static void sample(const SampleRow& row, void* scratch) {
    const int64_t stride = padded(row.vocabulary);
    float* area = (float*)scratch;
    const Candidates full = {row.vocabulary, nullptr, area, area + stride};
    const Candidates gathered = {0, (int32_t*)(area + 2 * stride), area + 3 * stride, area + 4 * stride};

    const Greatest peak = greatest_of(row.logits, row.vocabulary);
    if (peak.index < 0) {
        *row.token = -1;
        *row.logprob = __builtin_nanf("");
        for (int32_t i = 0; i < row.top_logprobs; ++i) {
            row.top_ids[i] = 0;
            row.top_values[i] = __builtin_nanf("");
        }
        return;
    }
    const double normaliser =
        double(peak.value) + natural_log(exponential_sum(row.logits, row.vocabulary, peak.value));
    if (row.top_logprobs > 0) {
        const Candidates raw = {row.vocabulary, nullptr, const_cast<float*>(row.logits), nullptr};
        Candidates best = {0, gathered.ids, gathered.keys, nullptr};
        gather_enough(raw, peak.value, {row.top_logprobs, 0.0}, best);
        keep_top_k(best, row.top_logprobs);
        sort_best_first(best);
        for (int32_t i = 0; i < row.top_logprobs; ++i) {
            row.top_ids[i] = best.ids[i];
            row.top_values[i] = float(double(best.keys[i]) - normaliser);
        }
    }
    if (adjusted(row)) {
        float* logits = area + 5 * stride;
        adjust(row, logits, gathered.ids);
        *row.token = choose(row, logits, greatest_of(logits, row.vocabulary), full, gathered);
    } else {
        *row.token = choose(row, row.logits, peak, full, gathered);
    }
    *row.logprob = *row.token < 0 ? __builtin_nanf("") : float(double(row.logits[*row.token]) - normaliser);
}

// ---- scoring

// Sum of exp(other - other_peak) * (other - own); terms without mass count nothing, whatever own is.
static double weighted_difference(const float* own, const float* other, int64_t n, float other_peak) {
    double sum = 0.0;
    for (int64_t run = 0; run < n; run += RUN) {
        Floats lanes = splat(0.0f);
        for (int64_t i = run; i < smaller(n, run + RUN); i += 16) {
            const Floats theirs = load_first(other + i, n - i);
            Floats mass = exponential(theirs - splat(other_peak));
            if (i + 16 > n) mass = select(first_lanes(n - i), mass, splat(0.0f));
            const Floats term = mass * (theirs - load_first(own + i, n - i));
            lanes = lanes + select(equal(mass, splat(0.0f)), splat(0.0f), term);
        }
        sum += double(total(lanes));
    }
    return sum;
}

static void score(const ScoreRow& row) {
    const int64_t n = row.vocabulary;
    const Greatest own = greatest_of(row.logits, n);
    const double sum = exponential_sum(row.logits, n, own.value);
    const double normaliser = double(own.value) + natural_log(sum);
    *row.logprob = own.index < 0 ? __builtin_nanf("") : float(double(row.logits[row.target]) - normaliser);
    *row.greedy = own.index;
    const float chosen = row.logits[row.target];
    const Candidates all = {n, nullptr, const_cast<float*>(row.logits), nullptr};
    const Candidates lower = {row.target, nullptr, const_cast<float*>(row.logits), nullptr};
    *row.rank = own.index < 0 ? -1
                              : int32_t(count_above(all, chosen) + count_from(lower, chosen) - count_above(lower, chosen));
    if (row.other == nullptr) return;
    const Greatest other = greatest_of(row.other, n);
    *row.other_greedy = other.index;
    if (own.index < 0 || other.index < 0) {
        *row.kl = __builtin_nanf("");
        return;
    }
    const double other_sum = exponential_sum(row.other, n, other.value);
    const double other_normaliser = double(other.value) + natural_log(other_sum);
    const double kl = weighted_difference(row.logits, row.other, n, other.value) / other_sum - (other_normaliser - normaliser);
    *row.kl = kl < 0.0 ? 0.0f : float(kl);
}

const SamplingKernels& sampling_kernels() {
    static constexpr SamplingKernels table = {scratch_bytes, sample, score};
    return table;
}

}  // namespace linnet::LINNET_TIER
