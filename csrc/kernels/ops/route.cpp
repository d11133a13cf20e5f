// SPDX-License-Identifier: Apache-2.0
// Which experts a token gets, how much each counts, and the sum of what they made.
#include "kernels/vector_math.h"
#include "ops.h"

namespace linnet::LINNET_TIER {

namespace {

// Of whole vectors of scores; lanes past the last expert are never looked at.
void sigmoids(const float* scores, float* probabilities, int64_t experts) {
    for (int64_t i = 0; i < experts; i += LANES) {
        const Floats x = load_first(scores + i, experts - i);
        store(probabilities + i, splat(1.0f) / (splat(1.0f) + exponential(splat(0.0f) - x)));
    }
}

void softmax(const float* scores, float* probabilities, int64_t experts) {
    float highest = scores[0];
    for (int64_t i = 1; i < experts; ++i) highest = scores[i] > highest ? scores[i] : highest;
    Floats sum = splat(0.0f);
    for (int64_t i = 0; i < experts; i += LANES) {
        const Floats x = load_first(scores + i, experts - i);
        const Floats e = select(first_lanes(experts - i), exponential(x - splat(highest)), splat(0.0f));
        store(probabilities + i, e);
        sum = sum + e;
    }
    const Floats whole = splat(total(sum));
    for (int64_t i = 0; i < experts; i += LANES) store(probabilities + i, load(probabilities + i) / whole);
}

// The sum of the `count` greatest, from the greatest on.
float sum_of_greatest(const float* from, int64_t size, int64_t count) {
    bool used[MOST_EXPERTS] = {};
    float sum = 0.0f;
    for (int64_t rank = 0; rank < count; ++rank) {
        int64_t found = -1;
        for (int64_t i = 0; i < size; ++i) {
            if (!used[i] && (found < 0 || from[i] > from[found])) found = i;
        }
        used[found] = true;
        sum += from[found];
    }
    return sum;
}

// Experts of the groups that hold none of the best ones cannot be taken.
void bar_groups(const float* ranks, bool* taken, const Routing& routing) {
    const int64_t size = routing.experts / routing.groups;
    float best[MOST_EXPERTS];
    bool kept[MOST_EXPERTS];
    for (int64_t group = 0; group < routing.groups; ++group) {
        kept[group] = false;
        best[group] = sum_of_greatest(ranks + group * size, size, routing.group_best);
    }
    for (int64_t rank = 0; rank < routing.groups_chosen; ++rank) {
        int64_t found = -1;
        for (int64_t group = 0; group < routing.groups; ++group) {
            if (!kept[group] && (found < 0 || best[group] > best[found])) found = group;
        }
        kept[found] = true;
    }
    for (int64_t i = 0; i < routing.experts; ++i) taken[i] = !kept[i / size];
}

}  // namespace

void route(const float* scores, int32_t* ids, float* weights, int64_t rows, const Routing& routing) {
    alignas(64) float probabilities[MOST_EXPERTS];
    float corrected[MOST_EXPERTS];
    bool taken[MOST_EXPERTS];
    const float* ranks = routing.correction ? corrected : probabilities;
    const int64_t experts = routing.experts, chosen = routing.chosen;
    for (int64_t row = 0; row < rows; ++row, scores += experts, ids += chosen, weights += chosen) {
        (routing.sigmoid ? sigmoids : softmax)(scores, probabilities, experts);
        for (int64_t i = 0; i < experts; ++i) taken[i] = false;
        for (int64_t i = 0; routing.correction && i < experts; ++i) {
            corrected[i] = probabilities[i] + routing.correction[i];
        }
        if (routing.groups_chosen < routing.groups) bar_groups(ranks, taken, routing);
        float sum = 0.0f;
        for (int64_t rank = 0; rank < chosen; ++rank) {
            int64_t best = -1;
            for (int64_t i = 0; i < experts; ++i) {
                if (!taken[i] && (best < 0 || ranks[i] > ranks[best])) best = i;
            }
            taken[best] = true;
            ids[rank] = int32_t(best);
            weights[rank] = probabilities[best];
            sum += probabilities[best];
        }
        for (int64_t rank = 0; rank < chosen; ++rank) {
            const float weight = routing.normalise ? weights[rank] / sum : weights[rank];
            weights[rank] = weight * routing.factor;
        }
    }
}

void combine(const float* x, const float* weights, float* y, int64_t rows, int64_t chosen, int64_t width) {
    for (int64_t row = 0; row < rows; ++row, x += chosen * width, weights += chosen, y += width) {
        for (int64_t i = 0; i < width; i += LANES) {
            Floats sum = load_first(x + i, width - i) * splat(weights[0]);
            for (int64_t rank = 1; rank < chosen; ++rank) {
                sum = sum + load_first(x + rank * width + i, width - i) * splat(weights[rank]);
            }
            store_first(y + i, width - i, sum);
        }
    }
}

}  // namespace linnet::LINNET_TIER
