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
    const double normaliser = double(peak.value) + natural_log(exponential_sum(row.logits, row.vocabulary, peak.value));
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

const SamplingKernels& sampling_kernels() {
    static constexpr SamplingKernels table = {scratch_bytes, sample, score};
    return table;
}

}  // namespace linnet::LINNET_TIER
