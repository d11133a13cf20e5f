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

// Candidates with threshold <= key <= last, in id order, into `out` (which may be `c` itself when c is gathered).
[[maybe_unused]] static void gather(const Candidates& c, float threshold, float last, Candidates& out) {
    int64_t count = 0;
    const Floats minus = splat(MINUS_INFINITY);
    for (int64_t i = 0; i < c.count; i += 16) {
        const int64_t here = smaller(16, c.count - i);
        const Floats keys = load_first(c.keys + i, here);
        const Floats inside = select(less(splat(last), keys), minus, keys);
        if (top(here == 16 ? inside : select(first_lanes(here), inside, minus)) < threshold) continue;
        for (int64_t j = i; j < i + here; ++j) {
            if (c.keys[j] < threshold || c.keys[j] > last) continue;
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
    gather(all, threshold, -MINUS_INFINITY, out);
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

[[maybe_unused]] static void keep_heavy(Candidates& c, float least_mass) {
    int64_t count = 0;
    for (int64_t i = 0; i < c.count; ++i) {
        if (c.masses[i] < least_mass) continue;
        c.ids[count] = c.ids[i];
        c.keys[count] = c.keys[i];
        c.masses[count++] = c.masses[i];
    }
    c.count = count;
}

// A set of tokens of a whole vocabulary without a list: those above a key, those equal to it up to some id, and of them
// those with enough mass.
struct Cut {
    float threshold = MINUS_INFINITY;
    int64_t last_tie = INT32_MAX;
    float least_mass = 0.0f;
    bool keeps(const Candidates& c, int64_t i) const {
        return (c.keys[i] > threshold || (c.keys[i] == threshold && i <= last_tie)) && c.masses[i] >= least_mass;
    }
};

constexpr int RUNGS = 4;  // thresholds tried in one pass: as many as cost no more than reading the keys

// mass_from of every threshold.
[[maybe_unused]] static void masses_from(const Candidates& c, const float* thresholds, double* sums) {
    Floats limits[RUNGS];
    for (int r = 0; r < RUNGS; ++r) {
        limits[r] = splat(thresholds[r]);
        sums[r] = 0.0;
    }
    const Floats zero = splat(0.0f);
    for (int64_t run = 0; run < c.count; run += RUN) {
        Floats lanes[RUNGS] = {zero, zero, zero, zero};
        for (int64_t i = run; i < smaller(c.count, run + RUN); i += 16) {
            const Floats keys = load_first(c.keys + i, c.count - i);
            const Floats masses = load_first(c.masses + i, c.count - i);
#pragma GCC unroll 4
            for (int r = 0; r < RUNGS; ++r) lanes[r] = lanes[r] + select(less(keys, limits[r]), zero, masses);
        }
        for (int r = 0; r < RUNGS; ++r) sums[r] += double(total(lanes[r]));
    }
}

// Of a whole vocabulary: the most likely as long as the mass before them is below `limit`; the first always stays. The
// threshold is first enclosed between two keys, then found among the few candidates between them, put into `band`.
[[maybe_unused]] static Cut cut_by_mass(const Candidates& full, float greatest_key, double limit, Candidates& band) {
    float low = MINUS_INFINITY, high = from_ordered(ordered(greatest_key) + 1);
    double above = 0.0;  // mass from `high` on, less than the limit
    const auto enclose = [&](const float* falling) {
        double sums[RUNGS];
        masses_from(full, falling, sums);
        for (int r = 0; r < RUNGS; ++r) {
            if (!(falling[r] < high)) continue;
            if (sums[r] >= limit) {
                low = falling[r];
                return true;
            }
            high = falling[r];
            above = sums[r];
        }
        return false;
    };
    bool enclosed = false;
    for (float distance = 1.0f; distance <= 16.0f && !enclosed; distance *= 16.0f) {
        const float falling[RUNGS] = {greatest_key - distance, greatest_key - 2.0f * distance,
                                      greatest_key - 4.0f * distance, greatest_key - 8.0f * distance};
        enclosed = enclose(falling);
    }
    for (int round = 0; round < 3 && enclosed; ++round) {
        const float step = (high - low) / (RUNGS + 1), top = high;
        const float falling[RUNGS] = {top - step, top - 2.0f * step, top - 3.0f * step, top - 4.0f * step};
        if (!(falling[RUNGS - 1] > low)) break;
        enclose(falling);
    }
    int64_t least = ordered(low), most = ordered(high) - 1;
    gather(full, low, from_ordered(most), band);
    while (least < most) {
        const int64_t middle = least + (most - least + 1) / 2;
        if (above + mass_from(band, from_ordered(middle)) >= limit)
            least = middle;
        else
            most = middle - 1;
    }
    Cut cut = {from_ordered(least), -1, 0.0f};
    double before = above + mass_above(band, cut.threshold);
    for (int64_t i = 0; i < band.count; ++i) {
        if (band.keys[i] != cut.threshold) continue;
        if (cut.last_tie >= 0 && !(before < limit)) break;
        before += double(band.masses[i]);
        cut.last_tie = band.ids[i];
    }
    return cut;
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
