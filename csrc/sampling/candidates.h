// SPDX-License-Identifier: Apache-2.0
// Sets of tokens and how the best of them are found without sorting the vocabulary: a coarse cut below the greatest
// key, a gather in token-id order, then an exact cut by bisection on float bits.
#pragma once

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

[[maybe_unused]] static int64_t count_from(const Candidates& c, float threshold) {
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

[[maybe_unused]] static double mass_from(const Candidates& c, float threshold) {
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
[[maybe_unused]] static void gather(const Candidates& c, float threshold, Candidates& out) {
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
[[maybe_unused]] static void gather_enough(const Candidates& all, float greatest_key, const Wanted& wanted,
                                           Candidates& out) {
    float threshold = MINUS_INFINITY;
    for (float distance = 1.0f; distance <= 128.0f; distance *= 2.0f) {
        if (!wanted.reached(all, greatest_key - distance)) continue;
        threshold = greatest_key - distance;
        break;
    }
    gather(all, threshold, out);
}

// Order-preserving map between floats (not NaN) and integers; -0 counts as +0.
[[maybe_unused]] static int64_t ordered(float value) {
    const int32_t bits = int32_t(float_to_bits(value));
    return bits >= 0 ? bits : -int64_t(bits & 0x7fffffff);
}
[[maybe_unused]] static float from_ordered(int64_t key) {
    return bits_to_float(key >= 0 ? uint32_t(key) : uint32_t(-key) | 0x80000000u);
}

// The greatest threshold whose candidates reach what is wanted (all of c does).
[[maybe_unused]] static float exact_threshold(const Candidates& c, const Wanted& wanted) {
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
[[maybe_unused]] static void keep(Candidates& c, float threshold, int64_t ties) {
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
[[maybe_unused]] static int64_t count_above(const Candidates& c, float threshold) {
    return threshold == -MINUS_INFINITY ? 0 : count_from(c, from_ordered(ordered(threshold) + 1));
}
[[maybe_unused]] static double mass_above(const Candidates& c, float threshold) {
    return threshold == -MINUS_INFINITY ? 0.0 : mass_from(c, from_ordered(ordered(threshold) + 1));
}

[[maybe_unused]] static void keep_top_k(Candidates& c, int64_t k) {
    if (c.count <= k) return;
    const float threshold = exact_threshold(c, {k, 0.0});
    keep(c, threshold, k - count_above(c, threshold));
}

// Keeps the most likely as long as the mass before them is below top_p of all; the first always stays.
[[maybe_unused]] static void keep_top_p(Candidates& c, double limit) {
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

// Heap order: the root is the worst (least key, of equal ones the highest id).
[[maybe_unused]] static bool worse(const Candidates& c, int64_t a, int64_t b) {
    return c.keys[a] != c.keys[b] ? c.keys[a] < c.keys[b] : c.ids[a] > c.ids[b];
}
[[maybe_unused]] static void exchange(Candidates& c, int64_t a, int64_t b) {
    const int32_t id = c.ids[a];
    const float key = c.keys[a];
    c.ids[a] = c.ids[b];
    c.keys[a] = c.keys[b];
    c.ids[b] = id;
    c.keys[b] = key;
}
[[maybe_unused]] static void sink(Candidates& c, int64_t place, int64_t count) {
    for (;;) {
        int64_t child = 2 * place + 1;
        if (child >= count) return;
        if (child + 1 < count && worse(c, child + 1, child)) ++child;
        if (!worse(c, child, place)) return;
        exchange(c, child, place);
        place = child;
    }
}
[[maybe_unused]] static void sort_best_first(Candidates& c) {
    for (int64_t i = c.count / 2 - 1; i >= 0; --i) sink(c, i, c.count);
    for (int64_t end = c.count - 1; end > 0; --end) {
        exchange(c, 0, end);
        sink(c, 0, end);
    }
}

}  // namespace linnet::LINNET_TIER
