// SPDX-License-Identifier: Apache-2.0
// The executor end to end without Python: a small llama-like model, whole against chunked, 1 against 3 threads, on
// every tier this machine has; refusals of bad batches; the pool under many tiny jobs. Meant to run under sanitizers.
#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <stdexcept>

#include "small_model.h"

using namespace linnet;

namespace {

constexpr int64_t WIDTH = 72, HEADS = 4, KV_HEADS = 2, HEAD = 18, INNER = 160;
constexpr int64_t VOCABULARY = SmallModel::VOCABULARY, BLOCK = SmallModel::BLOCK;

class Model : public SmallModel {
  public:
    // fused: the same operations, several linears of one input as one and row operations in chains.
    Model(const KernelTable& kernels, int threads, KVStorage kv, bool fused) : SmallModel(kernels, threads) {
        Executor& e = executor;
        const int state = e.add_state({kv, KV_HEADS, HEAD, HEAD, BLOCK});
        std::vector<double> frequencies;
        for (int i = 0; i < HEAD / 2; ++i) frequencies.push_back(1.0 / (1 + i));
        const RopeAttributes rope{HEAD, HEAD, RopeStyle::half, e.add_rope_table(frequencies, 1.0)};
        const int x = value(WIDTH), normed = value(WIDTH), quantised = value(WIDTH, ValueType::int8, 24);
        const int q = value(HEADS * HEAD), k = value(KV_HEADS * HEAD), v = value(KV_HEADS * HEAD);
        const int qr = value(HEADS * HEAD), context = value(HEADS * HEAD);
        const int half = value(WIDTH, ValueType::bf16), gate = value(INNER), down = value(WIDTH);
        // What stays inside a chain has no place in the arena; a rounded value becomes local where it is widened again.
        const auto begin = [&](const char* name) { fused ? e.begin_chain(name) : void(); };
        const auto end = [&] { fused ? e.end_chain() : void(); };
        const auto inner = [&](int64_t width, ValueType type = ValueType::fp32, int64_t group = 0) {
            return fused ? e.add_local({0, RowCount::tokens, 0, width, type, group, 0}) : value(width, type, group);
        };
        const LinearWeight table = weights.fp32(VOCABULARY, WIDTH);
        NormAttributes norm{NormFlavour::rms, WIDTH, 1e-5f, 0.0f, weights.floats(WIDTH, 1.0f), nullptr, WIDTH};
        begin("in");
        e.add("embed", make_embed(e, x, table));
        e.add("norm", make_norm(e, x, normed, norm));
        e.add("quantise", make_quantise(e, normed, quantised));
        end();
        const LinearWeight query = weights.int4(HEADS * HEAD, WIDTH, 24),
                           key = weights.int4(KV_HEADS * HEAD, WIDTH, 24);
        if (fused) {
            e.add("query+key", make_linear(e, quantised, {q, k}, {query, key}));
        } else {
            e.add("query", make_linear(e, quantised, {q}, {query}));
            e.add("key", make_linear(e, quantised, {k}, {key}));
        }
        e.add("value", make_linear(e, normed, {v}, {weights.fp32(KV_HEADS * HEAD, WIDTH)}));
        begin("rope");
        e.add("query_rope", make_rope(e, q, qr, rope));
        const int kr = inner(KV_HEADS * HEAD);
        e.add("key_rope", make_rope(e, k, kr, rope));
        e.add("kv_write", make_kv_write(e, kr, v, state));
        end();
        AttentionAttributes attention;
        attention.heads = HEADS;
        attention.scale = 0.25f;
        attention.rounded = kv != KVStorage::fp32;
        e.add("attention", make_attention(e, qr, context, state, attention));
        const int y = value(WIDTH), gated = value(INNER), sum = value(WIDTH);
        begin("middle");
        e.add("add", make_add(e, x, context, y));
        e.add("cast", make_cast(e, y, half));
        end();
        const LinearWeight gate_weight = weights.fp32(INNER, WIDTH), up_weight = weights.fp32(INNER, WIDTH);
        const int codes = value(INNER, ValueType::int8, 40);
        if (fused) {
            e.add("gated", make_gated_linear(e, half, codes, {gate_weight, up_weight}, {Activation::silu}));
        } else {
            const int up = value(INNER), act = value(INNER);
            e.add("gate", make_linear(e, half, {gate}, {gate_weight}));
            e.add("up", make_linear(e, half, {up}, {up_weight}));
            e.add("silu", make_gate(e, gate, up, act, {Activation::silu}));
            e.add("round", make_quantise(e, act, codes));
        }
        begin("activation");
        const int scaled = inner(INNER);
        e.add("widen", make_dequantise(e, codes, scaled));
        e.add("scale", make_scale(e, scaled, gated, 0.5f));
        end();
        e.add("down", make_linear(e, gated, {down}, {weights.fp32(WIDTH, INNER)}));
        e.add("residual", make_add(e, y, down, sum));
        head(sum, table);
    }
};

void test_pool() {
    ThreadPool pool(4);
    std::atomic<int64_t> sum{0};
    int64_t expected = 0;
    for (int64_t job = 0; job < 3000; ++job) {
        const int64_t items = job % 7;
        pool.run(items,
                 [&](int64_t item, int worker) { sum.fetch_add(item + 1 + 0 * worker, std::memory_order_relaxed); });
        expected += items * (items + 1) / 2;
        check(sum.load() == expected, "the pool ran every item once before returning");
    }
    // Two callers at once take turns.
    std::atomic<int64_t> both{0};
    const auto call = [&] {
        for (int i = 0; i < 300; ++i) pool.run(5, [&](int64_t, int) { both.fetch_add(1); });
    };
    std::thread other(call);
    call();
    other.join();
    check(both.load() == 3000, "two callers share the pool");
}

// More threads than cores, for long enough that workers offer their cores and move away from the caller's.
void test_pool_keeps_its_cores() {
    cpu_set_t allowed;
    check(sched_getaffinity(0, sizeof allowed, &allowed) == 0, "the allowed cores are known");
    ThreadPool pool(2 * CPU_COUNT(&allowed) + 1);
    std::atomic<int64_t> wrong{0}, ran{0};
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(50);
    int64_t expected = 0;
    for (; std::chrono::steady_clock::now() < until; expected += 64) {
        pool.run(64, [&](int64_t, int) {
            cpu_set_t now;
            ran.fetch_add(1);
            if (sched_getaffinity(0, sizeof now, &now) != 0 || !CPU_EQUAL(&now, &allowed)) wrong.fetch_add(1);
        });
    }
    check(ran.load() == expected, "every item ran once");
    check(wrong.load() == 0, "work runs on the cores that were allowed, all of them");
}

void test_model(const std::string& tier) {
    for (const KVStorage kv : {KVStorage::fp32, KVStorage::bf16, KVStorage::int8, KVStorage::fp8, KVStorage::int4}) {
        test_invariance(tier + ", KV storage " + std::to_string(int32_t(kv)), [&](int threads) {
            return std::make_unique<Model>(kernel_table(tier), threads, kv, threads > 1);
        });
    }
}

template <typename Change>
void refuses(const char* what, const Change& change) {
    std::vector<int32_t> ids{1, 2}, positions{0, 1}, slots{0, 1}, starts{0, 2}, contexts{2}, tables{0}, outputs{1};
    Batch batch{ids.data(),
                positions.data(),
                slots.data(),
                starts.data(),
                contexts.data(),
                tables.data(),
                outputs.data(),
                nullptr,
                2,
                1,
                1,
                1};
    change(ids, positions, slots, starts, contexts, tables, outputs);
    bool refused = false;
    try {
        validate(batch, Limits{4, 2, 2, BLOCK, 1, VOCABULARY}, {2});
    } catch (const std::invalid_argument&) {
        refused = true;
    }
    check(refused, std::string("a bad batch is refused: ") + what);
}

void test_chains() {
    const KernelTable& kernels = kernel_table("portable");
    const Limits limits{4, 2, 2, BLOCK, 1, VOCABULARY};
    Executor e(kernels, std::make_shared<ThreadPool>(1), limits, 1 << 16);
    const int x = e.add_value({0, RowCount::tokens, 0, 8, ValueType::fp32, 0, 0});
    const int y = e.add_value({4096, RowCount::tokens, 0, 8, ValueType::fp32, 0, 0});
    const int rows = e.add_value({8192, RowCount::outputs, 0, 8, ValueType::fp32, 0, 0});
    const Value described{0, RowCount::tokens, 0, 8, ValueType::fp32, 0, 0};
    throws("a local value without a chain", [&] { e.add_local(described); });
    throws("a chain that never began", [&] { e.end_chain(); });
    e.begin_chain("first");
    throws("a chain in a chain", [&] { e.begin_chain("second"); });
    throws("an empty chain", [&] { e.end_chain(); });
    const int local = e.add_local(described);
    e.add("scale", make_scale(e, x, local, 2.0f));
    throws("a gather of a chain's own rows", [&] { make_gather(e, local, rows); });
    throws("other rows in a chain", [&] { e.add("scale", make_scale(e, rows, rows, 2.0f)); });
    LinearWeight weight;
    const float eight[64] = {};
    weight.rows = weight.columns = weight.group_size = 8;
    weight.codes = eight;
    weight.code_row_bytes = 32;
    throws("a linear in a chain", [&] { e.add("linear", make_linear(e, x, {y}, {weight})); });
    e.add("again", make_scale(e, local, y, 2.0f));
    throws("a step in the middle of a chain", [&] { e.execute(Batch{}, nullptr, {1}); });
    e.end_chain();
    throws("a local value outside of its chain", [&] { make_scale(e, local, y, 2.0f); });
    e.begin_chain("second");
    throws("a local value in another chain", [&] { make_scale(e, local, y, 2.0f); });
    throws("as many outputs as weights", [&] { make_linear(e, x, {y}, {weight, weight}); });
}

void test_refusals() {
    refuses("token id", [](auto& ids, auto&...) { ids[1] = VOCABULARY; });
    refuses("negative token id", [](auto& ids, auto&...) { ids[0] = -1; });
    refuses("position", [](auto&, auto& positions, auto&...) { positions[1] = 7; });
    refuses("slot", [](auto&, auto&, auto& slots, auto&...) { slots[0] = 2 * BLOCK; });
    refuses("query start", [](auto&, auto&, auto&, auto& starts, auto&...) { starts[1] = 1; });
    refuses("context", [](auto&, auto&, auto&, auto&, auto& contexts, auto&...) { contexts[0] = BLOCK + 1; });
    refuses("short context", [](auto&, auto&, auto&, auto&, auto& contexts, auto&...) { contexts[0] = 1; });
    refuses("block", [](auto&, auto&, auto&, auto&, auto&, auto& tables, auto&) { tables[0] = 2; });
    refuses("output row", [](auto&, auto&, auto&, auto&, auto&, auto&, auto& outputs) { outputs[0] = 2; });
}

}  // namespace

int main() {
    test_pool();
    test_pool_keeps_its_cores();
    test_refusals();
    test_chains();
    for (const std::string& tier : available_tiers()) test_model(tier);
    std::printf(failures ? "%d failures\n" : "executor: all tests passed\n", failures);
    return failures ? 1 : 0;
}
