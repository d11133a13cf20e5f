// SPDX-License-Identifier: Apache-2.0
// Log-probability of a target, the most likely token, and the divergence from another model's logits.
#include "score.h"

#include "candidates.h"

namespace linnet::LINNET_TIER {

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

void score(const ScoreRow& row) {
    const int64_t n = row.vocabulary;
    const Greatest own = greatest_of(row.logits, n);
    const double sum = exponential_sum(row.logits, n, own.value);
    const double normaliser = double(own.value) + natural_log(sum);
    *row.logprob = own.index < 0 ? __builtin_nanf("") : float(double(row.logits[row.target]) - normaliser);
    *row.greedy = own.index;
    const float chosen = row.logits[row.target];
    const Candidates all = {n, nullptr, const_cast<float*>(row.logits), nullptr};
    const Candidates lower = {row.target, nullptr, const_cast<float*>(row.logits), nullptr};
    *row.rank =
        own.index < 0 ? -1 : int32_t(count_above(all, chosen) + count_from(lower, chosen) - count_above(lower, chosen));
    if (row.other == nullptr) return;
    const Greatest other = greatest_of(row.other, n);
    *row.other_greedy = other.index;
    if (own.index < 0 || other.index < 0) {
        *row.kl = __builtin_nanf("");
        return;
    }
    const double other_sum = exponential_sum(row.other, n, other.value);
    const double other_normaliser = double(other.value) + natural_log(other_sum);
    const double kl =
        weighted_difference(row.logits, row.other, n, other.value) / other_sum - (other_normaliser - normaliser);
    *row.kl = kl < 0.0 ? 0.0f : float(kl);
}

}  // namespace linnet::LINNET_TIER
