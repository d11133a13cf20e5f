// SPDX-License-Identifier: Apache-2.0
// One token from one row of logits: mask, bias and penalties, temperature, top_k, top_p, min_p, and the draw.
#include "sampling.h"

#include "candidates.h"
#include "philox.h"
#include "score.h"

namespace linnet::LINNET_TIER {

static int64_t padded(int64_t n) { return divide_up(n, 16) * 16; }

static int64_t scratch_bytes(const SampleRow& row) {
    // Full keys and masses, gathered ids, keys and masses, marks of seen tokens: one int or float per token each.
    return 6 * padded(row.vocabulary) * 4;
}

// ---- mask, bias, penalties

static bool adjusted(const SampleRow& row) {
    return row.allowed != nullptr || row.bias_count > 0 || (row.repetition_penalty != 1.0f && row.history_count > 0) ||
           ((row.presence_penalty != 0.0f || row.frequency_penalty != 0.0f) && row.generated_count > 0);
}

// The lanes whose bits are set in the low half of `word`.
LINNET_INLINE Mask lanes_of(uint32_t word) {
    alignas(64) static constexpr int32_t BITS[16] = {1 << 0,  1 << 1,  1 << 2,  1 << 3, 1 << 4,  1 << 5,
                                                     1 << 6,  1 << 7,  1 << 8,  1 << 9, 1 << 10, 1 << 11,
                                                     1 << 12, 1 << 13, 1 << 14, 1 << 15};
    const Ints bits = load_ints(BITS);
    return equal(splat_int(int32_t(word)) & bits, bits);
}

// The logits of what is allowed, and minus infinity for what is not.
static void copy_allowed(const SampleRow& row, float* logits) {
    const Floats none = splat(MINUS_INFINITY);
    const int64_t whole = row.vocabulary / 32;
    for (int64_t word = 0; word < whole; ++word) {
        const float* from = row.logits + 32 * word;
        float* to = logits + 32 * word;
        store(to, select(lanes_of(row.allowed[word]), load(from), none));
        store(to + 16, select(lanes_of(row.allowed[word] >> 16), load(from + 16), none));
    }
    for (int64_t id = 32 * whole; id < row.vocabulary; ++id)
        logits[id] = (row.allowed[whole] >> (id % 32) & 1) != 0 ? row.logits[id] : MINUS_INFINITY;
}

static void adjust(const SampleRow& row, float* logits, int32_t* marks) {
    if (row.allowed != nullptr)
        copy_allowed(row, logits);
    else
        std::memcpy(logits, row.logits, size_t(row.vocabulary) * 4);
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

// ---- the draw

// From a list of tokens.
static int32_t draw(const Candidates& c, double number) {
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

// From the whole vocabulary; sums [runs] is the mass of what `cut` keeps of every run.
static int32_t draw(const Candidates& c, const Cut& cut, const double* sums, double number) {
    const int64_t runs = divide_up(c.count, RUN);
    double sum = 0.0;
    for (int64_t run = 0; run < runs; ++run) sum += sums[run];
    double left = number * sum;
    int64_t chosen = 0;
    for (int64_t run = 0; run < runs; ++run) {
        if (!(sums[run] > 0.0)) continue;
        chosen = run;
        if (sums[run] > left) break;
        left -= sums[run];
    }
    // Should rounding lead past the end of a run, or of the last one, its last token is the one.
    int64_t token = 0;
    for (int64_t i = chosen * RUN; i < smaller(c.count, (chosen + 1) * RUN); ++i) {
        if (!cut.keeps(c, i) || !(c.masses[i] > 0.0f)) continue;
        token = i;
        left -= double(c.masses[i]);
        if (left < 0.0) break;
    }
    return int32_t(token);
}

// Keys, masses and the mass of every run.
static void weigh(const float* logits, float temperature, float greatest_key, const Candidates& full, double* sums) {
    const Floats divisor = splat(temperature), shift = splat(greatest_key);
    for (int64_t run = 0; run < full.count; run += RUN) {
        Floats lanes = splat(0.0f);
        for (int64_t i = run; i < smaller(full.count, run + RUN); i += 16) {
            const int64_t left = full.count - i;
            const Floats key = load_first(logits + i, left) / divisor;
            const Floats mass = exponential(key - shift);
            store_first(full.keys + i, left, key);
            store_first(full.masses + i, left, mass);
            lanes = lanes + (left >= 16 ? mass : select(first_lanes(left), mass, splat(0.0f)));
        }
        sums[run / RUN] = double(total(lanes));
    }
}

// The mass that `cut` keeps of every run.
static void weigh_kept(const Candidates& full, const Cut& cut, double* sums) {
    const Floats zero = splat(0.0f), threshold = splat(cut.threshold), least = splat(cut.least_mass);
    for (int64_t run = 0; run < full.count; run += RUN) {
        Floats lanes = zero;
        for (int64_t i = run; i < smaller(full.count, run + RUN); i += 16) {
            const Floats keys = load_first(full.keys + i, full.count - i);
            const Floats masses = load_first(full.masses + i, full.count - i);
            const Floats ties = i > cut.last_tie ? zero : select(first_lanes(cut.last_tie + 1 - i), masses, zero);
            const Floats kept = select(less(threshold, keys), masses, select(equal(keys, threshold), ties, zero));
            lanes = lanes + select(less(masses, least), zero, kept);
        }
        sums[run / RUN] = double(total(lanes));
    }
}

static int32_t choose(const SampleRow& row, const float* logits, const Greatest& peak, const Candidates& full,
                      Candidates gathered) {
    if (peak.value == MINUS_INFINITY || peak.index < 0) return -1;
    if (row.temperature == 0.0f || peak.value == -MINUS_INFINITY) return peak.index;
    const double number = uniform_number(row.seed, row.position, row.purpose);
    const float greatest_key = peak.value / row.temperature;
    if (greatest_key - greatest_key != 0.0f) return peak.index;  // too small a temperature to divide by
    double* sums = (double*)gathered.keys;                       // not needed at the same time
    weigh(logits, row.temperature, greatest_key, full, sums);
    if (row.top_k > 0 && row.top_k < row.vocabulary) {
        gather_enough(full, greatest_key, {row.top_k, 0.0}, gathered);
        keep_top_k(gathered, row.top_k);
        if (row.top_p < 1.0f) keep_top_p(gathered, double(row.top_p) * mass_from(gathered, MINUS_INFINITY));
        if (row.min_p > 0.0f) keep_heavy(gathered, row.min_p);
        return draw(gathered, number);
    }
    Cut cut;
    if (row.top_p < 1.0f) {
        double sum = 0.0;
        for (int64_t run = 0; run < divide_up(full.count, RUN); ++run) sum += sums[run];
        cut = cut_by_mass(full, greatest_key, double(row.top_p) * sum, gathered);
    }
    cut.least_mass = row.min_p;
    if (row.top_p < 1.0f || row.min_p > 0.0f) weigh_kept(full, cut, sums);
    return draw(full, cut, sums, number);
}

// ---- log-probabilities of the raw distribution

static double normaliser_of(const SampleRow& row, float peak) {
    return double(peak) + natural_log(exponential_sum(row.logits, row.vocabulary, peak));
}

// The likeliest tokens by `logits`, which are the row's or those of what is allowed.
static void tell_best(const SampleRow& row, const float* logits, float peak, double normaliser,
                      const Candidates& scratch) {
    if (row.top_logprobs == 0) return;
    const Candidates all = {row.vocabulary, nullptr, const_cast<float*>(logits), nullptr};
    Candidates best = {0, scratch.ids, scratch.keys, nullptr};
    gather_enough(all, peak, {row.top_logprobs, 0.0}, best);
    keep_top_k(best, row.top_logprobs);
    sort_best_first(best);
    for (int32_t i = 0; i < row.top_logprobs; ++i) {
        row.top_ids[i] = best.ids[i];
        row.top_values[i] = float(double(best.keys[i]) - normaliser);
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
        if (row.logprob != nullptr) *row.logprob = __builtin_nanf("");
        for (int32_t i = 0; i < row.top_logprobs; ++i) {
            row.top_ids[i] = 0;
            row.top_values[i] = __builtin_nanf("");
        }
        return;
    }
    const double normaliser = row.logprob != nullptr ? normaliser_of(row, peak.value) : 0.0;
    float* logits = area + 5 * stride;
    if (row.top_allowed && row.allowed != nullptr) {
        copy_allowed(row, logits);
        tell_best(row, logits, greatest_of(logits, row.vocabulary).value, normaliser, gathered);
    } else {
        tell_best(row, row.logits, peak.value, normaliser, gathered);
    }
    if (adjusted(row)) {
        adjust(row, logits, gathered.ids);
        *row.token = choose(row, logits, greatest_of(logits, row.vocabulary), full, gathered);
    } else {
        *row.token = choose(row, row.logits, peak, full, gathered);
    }
    if (row.logprob == nullptr) return;
    *row.logprob = *row.token < 0 ? __builtin_nanf("") : float(double(row.logits[*row.token]) - normaliser);
}

const SamplingKernels& sampling_kernels() {
    static constexpr SamplingKernels table = {.scratch_bytes = scratch_bytes, .sample = sample, .score = score};
    return table;
}

}  // namespace linnet::LINNET_TIER
