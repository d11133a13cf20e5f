// SPDX-License-Identifier: Apache-2.0
// What the model of executor_test.cpp has not: learned positions, experts, layers that carry a state, adapters. Odd
// widths, prompts and single tokens, one and three threads, every tier this machine has; refusals. Meant to run under
// sanitizers.
#include <cmath>

#include "executor/low_rank.h"
#include "small_model.h"

using namespace linnet;

namespace {

constexpr int64_t TOKENS = SmallModel::TOKENS;

// A feed-forward of six experts, two for each token (or three of those of the best groups), beside a shared one that a
// score of its own weighs. What it reads is put together head by head.
class ExpertsModel : public SmallModel {
    static constexpr float CORRECTIONS[6] = {0.0f, 0.25f, -0.5f, 0.125f, 0.0f, 0.5f};

  public:
    // rounded: experts of int4 codes that read int8 ones, a softmax and chains; else fp32, sigmoids and odd widths.
    ExpertsModel(const KernelTable& kernels, int threads, bool rounded) : SmallModel(kernels, threads) {
        Executor& e = executor;
        const int64_t width = 72, inner = rounded ? 48 : 37, experts = 6, chosen = rounded ? 2 : 3;
        const LinearWeight table = weights.fp32(VOCABULARY, width), places = weights.fp32(TOKENS, width);
        const int token = value(width), place = value(width), whole = value(width), x = value(width);
        if (rounded) e.begin_chain("in");
        e.add("embed", make_embed(e, token, table));
        e.add("positions", make_embed(e, place, places, true));
        e.add("sum", make_add(e, token, place, whole));
        if (rounded) e.end_chain();
        const int first_parts = linear("first_parts", whole, rounded ? 4 : 24), rest = linear("rest", whole, 48);
        e.add("join", make_join_heads(e, first_parts, rest, x, 6, rounded));
        const int scores = linear("router", x, experts), ids = value(chosen, ValueType::int32);
        const int shares = value(chosen);
        Routing routing{experts, chosen, 1, 1, !rounded, true, 1.5f};
        if (!rounded) {
            routing.groups = 3;
            routing.groups_chosen = routing.group_best = 2;
            routing.correction = CORRECTIONS;
        }
        e.add("route", make_route(e, scores, ids, shares, routing));
        int given = x;
        if (rounded) {
            given = value(width, ValueType::int8, 24);
            e.add("quantise", make_quantise(e, x, given));
        }
        const auto drawn = [&](int64_t rows, int64_t columns) {
            std::vector<LinearWeight> all;
            for (int64_t i = 0; i < experts; ++i) {
                all.push_back(rounded ? weights.int4(rows, columns, 24) : weights.fp32(rows, columns));
            }
            return all;
        };
        const auto each = [&](int64_t columns, ValueType type = ValueType::fp32, int64_t group = 0) {
            return value(columns, type, group, RowCount::tokens, chosen);
        };
        const int gate = each(inner), up = each(inner), gated = each(inner), down = each(width);
        e.add("gate", make_experts(e, given, ids, gate, drawn(inner, width)));
        e.add("up", make_experts(e, given, ids, up, drawn(inner, width)));
        int middle = gated;
        if (rounded) e.begin_chain("activation");
        e.add("silu", make_gate(e, gate, up, gated, {Activation::silu}));
        if (rounded) {
            middle = each(inner, ValueType::int8, 24);
            e.add("round", make_quantise(e, gated, middle));
            e.end_chain();
        }
        e.add("down", make_experts(e, middle, ids, down, drawn(width, inner)));
        const int mixed = value(width), shared = value(width), sum = value(width), y = value(width);
        e.add("combine", make_combine(e, down, shares, mixed));
        const int common = linear("shared", x, width), score = linear("shared_score", x, 1);
        const int first = value(1, ValueType::int32), share = value(1);
        if (rounded) e.begin_chain("shared");
        e.add("shared_route", make_route(e, score, first, share, {1, 1, 1, 1, true, false, 1.0f}));
        e.add("weigh", make_combine(e, common, share, shared));
        e.add("add", make_add(e, mixed, shared, sum));
        e.add("residual", make_add(e, x, sum, y));
        if (rounded) e.end_chain();
        head(y, table);
    }
};

struct ScanShape {
    int64_t width, states, head_size, groups;
    bool shared_decay;
};

// A convolution and a scan; the second convolution makes B and C where groups share them.
class RecurrentModel : public SmallModel {
  public:
    RecurrentModel(const KernelTable& kernels, int threads, const ScanShape& shape, int64_t taps)
        : SmallModel(kernels, threads) {
        Executor& e = executor;
        const int64_t width = shape.width, inner = shape.groups * shape.states, heads = width / shape.head_size;
        const LinearWeight table = weights.fp32(VOCABULARY, 40);
        const int x = value(40), scanned = value(width);
        e.add("embed", make_embed(e, x, table));
        const int taken = convolved(linear("x", x, width), taps), gate = linear("gate", x, width);
        const int in = convolved(linear("in", x, inner), taps), out = convolved(linear("out", x, inner), taps);
        const int steps = linear("steps", x, heads);
        std::vector<float>& decays = decays_;
        for (int64_t i = 0; i < (shape.shared_decay ? 1 : shape.states) * width; ++i) {
            decays.push_back(-0.1f - float(i % 7) * 0.2f);
        }
        const ScanCall call{width,
                            shape.states,
                            shape.head_size,
                            shape.groups,
                            shape.shared_decay,
                            decays.data(),
                            weights.floats(width, 0.5f),
                            weights.floats(width, 0.3f)};
        const int state = e.add_slot_state(shape.states * width);
        e.add("scan", make_scan(e, taken, steps, in, out, scanned, state, call));
        const int gated = value(width), y = value(40);
        e.add("silu", make_gate(e, gate, scanned, gated, {Activation::silu}));
        e.add("residual", make_add(e, x, linear("output", gated, 40), y));
        head(y, table);
    }

  private:
    int convolved(int input, int64_t taps) {
        const int64_t width = executor.value(input).width;
        const int made = value(width);
        const ConvCall call{width, taps, weights.floats(taps * width, 0.4f), weights.floats(width, 0.2f)};
        executor.add("conv", make_conv(executor, input, made, executor.add_slot_state((taps - 1) * width), call));
        return made;
    }

    std::vector<float> decays_;
};

void test_experts(const std::string& tier) {
    for (const bool rounded : {false, true}) {
        test_invariance(tier + (rounded ? ", rounded experts" : ", experts"), [&](int threads) {
            return std::make_unique<ExpertsModel>(kernel_table(tier), threads, rounded);
        });
    }
}

void test_states(const std::string& tier) {
    constexpr ScanShape shapes[] = {
        {83, 5, 1, 1, false}, {84, 19, 6, 2, true}, {336, 16, 12, 4, true}, {1, 1, 1, 1, false}};
    for (const ScanShape& shape : shapes) {
        for (const int64_t taps : {2, 4}) {
            const std::string what = tier + ", a scan of " + std::to_string(shape.width) + " channels";
            test_invariance(what, [&](int threads) {
                return std::make_unique<RecurrentModel>(kernel_table(tier), threads, shape, taps);
            });
        }
    }
}

// Convolution and scan against their formulas in double.
void test_formulas(const std::string& tier) {
    constexpr int64_t width = 30, states = 3, rows = 5, taps = 3, heads = 5, groups = 2;
    DrawnWeights drawn;
    const float *x = drawn.floats(rows * width, 1.0f), *taken = drawn.floats(taps * width, 1.0f);
    const float *bias = drawn.floats(width, 1.0f), *steps = drawn.floats(rows * heads, 1.0f);
    const float *in = drawn.floats(rows * groups * states, 1.0f), *out = drawn.floats(rows * groups * states, 1.0f);
    const float *decay = drawn.floats(states * width, 0.1f, -1.0f), *skip = drawn.floats(width, 1.0f);
    const KernelTable& kernels = kernel_table(tier);
    std::vector<float> y(size_t(rows * width)), state(size_t(states * width), 1e9f);
    SequenceRows given{x, y.data(), rows, state.data(), true, steps, in, out};
    double largest = 0.0;
    kernels.conv({width, taps, taken, bias}, given, 0, width);
    for (int64_t t = 0; t < rows; ++t) {
        for (int64_t c = 0; c < width; ++c) {
            double sum = bias[c];
            for (int64_t k = 0; k < taps; ++k) {
                if (t + k >= taps - 1) sum += double(taken[k * width + c]) * x[(t + k - taps + 1) * width + c];
            }
            largest = std::max(largest, std::abs(sum - y[size_t(t * width + c)]));
        }
    }
    check(largest < 1e-5, tier + ": a convolution is what its formula says");
    kernels.scan({width, states, width / heads, groups, false, decay, skip, bias}, given, 0, width);
    largest = 0.0;
    for (int64_t c = 0; c < width; ++c) {
        double h[states] = {};
        const int64_t group = c / (width / groups) * states;
        for (int64_t t = 0; t < rows; ++t) {
            const double step = std::log1p(std::exp(double(steps[t * heads + c / (width / heads)]) + bias[c]));
            double sum = double(skip[c]) * x[t * width + c];
            for (int64_t s = 0; s < states; ++s) {
                h[s] = std::exp(step * decay[s * width + c]) * h[s] +
                       step * x[t * width + c] * in[t * groups * states + group + s];
                sum += h[s] * out[t * groups * states + group + s];
            }
            largest = std::max(largest, std::abs(sum - y[size_t(t * width + c)]));
        }
    }
    check(largest < 1e-4, tier + ": a scan is what its formula says");
}

// Two linears of one input, one result added to in its place and one copied first, and what adapters of several ranks
// add: against the sums in double, and alone against in company.
class AdaptersModel : public SmallModel {
  public:
    static constexpr int64_t WIDTH = 37, FIRST = 23, SECOND = 61, ADAPTERS = 3;

    AdaptersModel(const KernelTable& kernels, int threads) : SmallModel(kernels, threads) {
        Executor& e = executor;
        const LinearWeight table = weights.fp32(VOCABULARY, WIDTH);
        const int x = value(WIDTH);
        e.add("embed", make_embed(e, x, table));
        const int first = linear("first", x, FIRST), second = linear("second", x, SECOND), added = value(FIRST);
        low_rank_ = e.add_low_rank("adapters", x, {first, second}, {added, second});
        const int rows = value(SECOND, ValueType::fp32, 0, RowCount::outputs);
        logits = value(VOCABULARY, ValueType::fp32, 0, RowCount::outputs);
        e.add("gather", make_gather(e, second, rows));
        e.add("copy", make_scale(e, rows, logits, 1.0f));
        first_ = added;
        for (int64_t adapter = 0; adapter < ADAPTERS; ++adapter) {
            const int64_t rank = 1 + 16 * adapter;
            const LowRankTerm one{narrow(rank, WIDTH, false), narrow(FIRST, rank, false), 0.5f};
            const LowRankTerm two{narrow(rank, WIDTH, true), narrow(SECOND, rank, true), 0.5f};
            if (adapter != 1) e.set_adapter(low_rank_, 0, adapter, &one);
            e.set_adapter(low_rank_, 1, adapter, &two);
        }
    }

    // Rows of one sequence, with their adapters; both results, one row after the other.
    std::vector<float> step(const std::vector<int32_t>& ids, const std::vector<int32_t>& adapters) {
        const int64_t count = int64_t(ids.size());
        std::vector<int32_t> rows(ids.size()), tables;
        for (int64_t i = 0; i < count; ++i) rows[size_t(i)] = int32_t(i);
        for (int64_t b = 0; b * BLOCK < count; ++b) tables.push_back(int32_t(b));
        const int32_t starts[2] = {0, int32_t(count)}, contexts[1] = {int32_t(count)};
        Batch batch{ids.data(),  rows.data(), rows.data(), starts, contexts, tables.data(),
                    rows.data(), nullptr,     count,       1,      count,    int64_t(tables.size())};
        batch.adapters = adapters.empty() ? nullptr : adapters.data();
        executor.execute(batch, nullptr, {BLOCKS});
        std::vector<float> one(ids.size() * FIRST), two(ids.size() * SECOND), both;
        executor.read(first_, one.data());
        executor.read(logits, two.data());
        for (size_t i = 0; i < ids.size(); ++i) {
            both.insert(both.end(), &one[i * FIRST], &one[i * FIRST] + FIRST);
            both.insert(both.end(), &two[i * SECOND], &two[i * SECOND] + SECOND);
        }
        return both;
    }

    void forget(int64_t adapter) { executor.set_adapter(low_rank_, 1, adapter, nullptr); }

  private:
    NarrowWeight narrow(int64_t outputs, int64_t columns, bool bf16) {
        const int64_t size = (outputs + 15) / 16 * 16 * columns;
        const float* numbers = weights.floats(size, 0.2f);
        if (!bf16) return {numbers, false, outputs, columns};
        uint8_t* halves = const_cast<uint8_t*>(weights.codes(size * 2));
        executor.kernels().linear->cast_bf16(numbers, reinterpret_cast<uint16_t*>(halves), size);
        return {halves, true, outputs, columns};
    }

    int first_ = 0, low_rank_ = 0;
};

void test_adapters(const std::string& tier) {
    constexpr int64_t both = AdaptersModel::FIRST + AdaptersModel::SECOND;
    AdaptersModel one(kernel_table(tier), 1), three(kernel_table(tier), 3);
    std::mt19937 random(3);
    std::vector<int32_t> ids, adapters;
    for (int i = 0; i < 150; ++i) {
        ids.push_back(int32_t(random() % AdaptersModel::VOCABULARY));
        adapters.push_back(int32_t(random() % 4) - 1);
    }
    const std::vector<float> together = three.step(ids, adapters), plain = one.step(ids, {});
    bool same = true, differ = true;
    for (size_t i = 0; i < ids.size(); ++i) {
        const std::vector<float> alone = one.step({ids[i]}, {adapters[i]});
        same = same && std::memcmp(alone.data(), &together[i * both], both * 4) == 0;
        const bool equal = std::memcmp(&plain[i * both], &together[i * both], both * 4) == 0;
        differ = differ && equal == (adapters[i] < 0);
    }
    check(same, tier + ", adapters: alone on one thread equals in company on three");
    check(differ, tier + ", adapters: rows without one are what they are without any, the others are not");
    one.forget(0);
    check(one.step({5}, {1}) == three.step({5}, {1}), tier + ", adapters: one that is forgotten changes no other");
    throws(tier + ", an adapter that is not known", [&] { one.step({5}, {7}); });
    throws(tier + ", a number that is no adapter", [&] { one.step({5}, {-2}); });
}

void test_refusals() {
    Executor e(kernel_table("portable"), std::make_shared<ThreadPool>(1), Limits{4, 2, 2, 16, 1, 8}, 1 << 16);
    int64_t offset = 0;
    const auto value = [&](int64_t width, ValueType type = ValueType::fp32, int64_t each = 1) {
        Value placed{offset, RowCount::tokens, 0, width, type, 0, 0};
        placed.each = each;
        offset += 1024;
        return e.add_value(placed);
    };
    const int x = value(8), y = value(8), scores = value(4), two = value(2), ids = value(2, ValueType::int32);
    const int pair = value(8, ValueType::fp32, 2);
    const float eight[64] = {};
    LinearWeight weight;
    weight.rows = weight.columns = weight.group_size = 8;
    weight.codes = eight;
    weight.code_row_bytes = 32;
    throws("more experts chosen than there are",
           [&] { make_route(e, scores, ids, two, {1, 2, 1, 1, false, false, 1.0f}); });
    throws("groups that do not tile the experts", [&] { make_route(e, scores, ids, two, {4, 2, 3, 1}); });
    throws("groups that hold fewer than are chosen", [&] { make_route(e, scores, ids, two, {4, 2, 4, 1}); });
    throws("groups that rank by more experts than they have",
           [&] { make_route(e, scores, ids, two, {4, 2, 2, 1, false, false, 1.0f, 3}); });
    throws("heads that two do not tile", [&] { make_join_heads(e, two, x, y, 3, false); });
    throws("heads that are wider than what is joined", [&] { make_join_heads(e, two, scores, y, 2, false); });
    throws("routes whose ids are no whole numbers", [&] { make_route(e, scores, two, two, {4, 2}); });
    throws("fewer experts than are chosen", [&] { make_experts(e, x, ids, pair, {weight}); });
    throws("experts with a row for all choices", [&] { make_experts(e, x, ids, y, {weight, weight}); });
    throws("a sum of rows that are not there", [&] { make_combine(e, x, two, y); });
    const int last = e.add_slot_state(3 * 8), carried = e.add_slot_state(2 * 8);
    throws("a convolution of one tap", [&] { make_conv(e, x, y, last, {8, 1, eight, nullptr}); });
    throws("a convolution of another state", [&] { make_conv(e, x, y, last, {8, 3, eight, nullptr}); });
    const ScanCall call{8, 2, 1, 1, false, eight, eight, nullptr};
    throws("a scan of another state", [&] { make_scan(e, x, x, two, two, y, last, call); });
    throws("a scan whose heads do not tile",
           [&] { make_scan(e, x, x, two, two, y, carried, {8, 2, 3, 1, false, eight, eight, nullptr}); });
    throws("a scan with steps of other heads",
           [&] { make_scan(e, x, x, two, two, y, carried, {8, 2, 2, 1, false, eight, eight, nullptr}); });
    e.add("scan", make_scan(e, x, x, two, two, y, carried, call));
    e.add("positions", make_embed(e, x, weight, true));  // of eight
    const auto step = [&](std::vector<int32_t> slots, int32_t position) {
        const int32_t tokens[2] = {0, 0}, positions[2] = {position, 0}, kv[2] = {0, 0}, starts[3] = {0, 1, 2};
        const int32_t contexts[2] = {position + 1, 1}, tables[2] = {0, 0};
        Buffer memory(e.slot_bytes() * 2);
        std::memset(memory.data(), 0, size_t(memory.bytes()));
        e.execute({tokens, positions, kv, starts, contexts, tables, nullptr, slots.empty() ? nullptr : slots.data(), 2,
                   2, 0, 1},
                  nullptr, {1}, memory.data());
    };
    throws("a slot that two sequences name", [&] { step({1, 1}, 3); });
    throws("a slot that is not there", [&] { step({0, 2}, 3); });
    throws("no slots where some are needed", [&] { step({}, 3); });
    throws("a position that the table has not", [&] { step({0, 1}, 8); });
    step({1, 0}, 7);
}

}  // namespace

int main() {
    test_refusals();
    for (const std::string& tier : available_tiers()) {
        test_formulas(tier);
        test_experts(tier);
        test_states(tier);
        test_adapters(tier);
    }
    std::printf(failures ? "%d failures\n" : "operations: all tests passed\n", failures);
    return failures ? 1 : 0;
}
