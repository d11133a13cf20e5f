// SPDX-License-Identifier: Apache-2.0
// Models of random weights for tests of the executor: values side by side in its arena, every array exactly as long as
// it must be (a sanitizer sees one byte too far), prompts in chunks.
#pragma once

#include <cstdio>
#include <cstring>
#include <deque>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "executor/operations.h"
#include "kernels/isa.h"

namespace linnet {

inline int failures = 0;

inline void check(bool condition, const std::string& what) {
    if (condition) return;
    std::printf("FAILED: %s\n", what.c_str());
    ++failures;
}

template <typename Attempt>
void throws(const std::string& what, const Attempt& attempt) {
    bool refused = false;
    try {
        attempt();
    } catch (const std::invalid_argument&) {
        refused = true;
    }
    check(refused, "refused: " + what);
}

struct DrawnWeights {
    std::mt19937 random{7};
    std::deque<std::vector<float>> dense;
    std::deque<std::vector<uint8_t>> bytes;

    const float* floats(int64_t n, float spread, float middle = 0.0f) {
        std::normal_distribution<float> normal(middle, spread);
        dense.emplace_back(size_t(n));
        for (float& value : dense.back()) value = normal(random);
        return dense.back().data();
    }
    const uint8_t* codes(int64_t n) {
        bytes.emplace_back(size_t(n));
        for (uint8_t& value : bytes.back()) value = uint8_t(random());
        return bytes.back().data();
    }
    LinearWeight fp32(int64_t rows, int64_t columns) {
        LinearWeight weight;
        weight.rows = rows;
        weight.columns = weight.group_size = columns;
        weight.codes = floats(rows * columns, 0.15f);
        weight.code_row_bytes = columns * 4;
        return weight;
    }
    LinearWeight int4(int64_t rows, int64_t columns, int64_t group) {
        LinearWeight weight;
        weight.storage = Storage::packed_int;
        weight.bits = 4;
        weight.rows = rows;
        weight.columns = columns;
        weight.group_size = group;
        weight.code_row_bytes = (columns + 7) / 8 * 4;
        weight.codes = codes(rows * weight.code_row_bytes);
        const int64_t groups = (columns + group - 1) / group;
        weight.scales = floats(rows * groups, 0.03f);
        weight.scale_row_stride = groups;
        weight.scale_group_stride = 1;
        return weight;
    }
};

// An executor under construction: a kind of model adds its operations and says which value holds the logits.
class SmallModel {
  public:
    static constexpr int64_t VOCABULARY = 61, TOKENS = 320, SEQUENCES = 4, BLOCK = 16, BLOCKS = TOKENS / BLOCK;

    SmallModel(const KernelTable& kernels, int threads)
        : executor(kernels, std::make_shared<ThreadPool>(threads),
                   Limits{TOKENS, SEQUENCES, TOKENS, BLOCK, BLOCKS, VOCABULARY}, 32 << 20) {}

    // Runs sequences of the given lengths in chunks of at most `chunk` rows; logits of every row, by sequence. What
    // states hold before is no number at all.
    std::vector<float> run(const std::vector<int64_t>& lengths, int64_t chunk) {
        const int64_t sequences = int64_t(lengths.size()), per_sequence = BLOCKS / sequences;
        Buffer memory(executor.kv_bytes({BLOCKS})), slots(executor.slot_bytes() * SEQUENCES);
        if (memory.bytes()) std::memset(memory.data(), 0xff, size_t(memory.bytes()));
        if (slots.bytes()) std::memset(slots.data(), 0xff, size_t(slots.bytes()));
        std::vector<int64_t> done(size_t(sequences), 0), first(size_t(sequences), 0);
        int64_t total = 0;
        for (int64_t s = 0; s < sequences; ++s) {
            first[size_t(s)] = total;
            total += lengths[size_t(s)];
        }
        std::vector<float> result(size_t(total * VOCABULARY));
        for (bool busy = true; busy;) {
            std::vector<int32_t> ids, positions, kv, starts{0}, contexts, tables, outputs, carried;
            std::vector<int64_t> places;
            busy = false;
            for (int64_t s = 0; s < sequences; ++s) {
                const int64_t left = lengths[size_t(s)] - done[size_t(s)], count = left < chunk ? left : chunk;
                if (count == 0) continue;
                busy = true;
                for (int64_t i = 0; i < count; ++i) {
                    const int64_t position = done[size_t(s)]++;
                    ids.push_back(int32_t((position * 31 + s * 17) % VOCABULARY));
                    positions.push_back(int32_t(position));
                    kv.push_back(int32_t(s * per_sequence * BLOCK + position));
                    outputs.push_back(int32_t(outputs.size()));
                    places.push_back(first[size_t(s)] + position);
                }
                starts.push_back(int32_t(ids.size()));
                contexts.push_back(int32_t(done[size_t(s)]));
                carried.push_back(int32_t((s + 2) % SEQUENCES));
                for (int64_t b = 0; b < per_sequence; ++b) tables.push_back(int32_t(s * per_sequence + b));
            }
            if (!busy) break;
            Batch batch{ids.data(),
                        positions.data(),
                        kv.data(),
                        starts.data(),
                        contexts.data(),
                        tables.data(),
                        outputs.data(),
                        carried.data(),
                        int64_t(ids.size()),
                        int64_t(contexts.size()),
                        int64_t(outputs.size()),
                        per_sequence};
            executor.execute(batch, memory.data(), {BLOCKS}, slots.data());
            std::vector<float> out(ids.size() * size_t(VOCABULARY));
            executor.read(logits, out.data());
            for (size_t i = 0; i < ids.size(); ++i) {
                std::memcpy(&result[size_t(places[i] * VOCABULARY)], &out[i * size_t(VOCABULARY)],
                            size_t(VOCABULARY) * 4);
            }
        }
        return result;
    }

    Executor executor;
    int logits = 0;

  protected:
    int value(int64_t width, ValueType type = ValueType::fp32, int64_t group = 0, RowCount rows = RowCount::tokens,
              int64_t each = 1) {
        Value placed{offset_, rows, 0, width, type, group, 0};
        placed.each = each;
        offset_ += value_bytes(executor.kernels(), type, each * TOKENS, width, group);
        return executor.add_value(placed);
    }

    int linear(const char* name, int input, int64_t rows) {
        const int made = value(rows);
        executor.add(name, make_linear(executor, input, {made}, {weights.fp32(rows, executor.value(input).width)}));
        return made;
    }

    // Every row's logits, by the table of the embedding.
    void head(int input, const LinearWeight& table) {
        const int rows = value(executor.value(input).width, ValueType::fp32, 0, RowCount::outputs);
        logits = value(VOCABULARY, ValueType::fp32, 0, RowCount::outputs);
        executor.add("gather", make_gather(executor, input, rows));
        executor.add("logits", make_linear(executor, rows, {logits}, {table}));
    }

    DrawnWeights weights;

  private:
    int64_t offset_ = 0;
};

// Whole on one thread, in chunks on three, alone and in company: the same bits, and numbers.
template <typename Make>
void test_invariance(const std::string& what, const Make& make) {
    const std::vector<int64_t> one{300}, many{70, 1, 33, 64};
    auto single = make(1), several = make(3);
    const std::vector<float> whole = single->run(one, SmallModel::TOKENS);
    check(whole == several->run(one, 97), what + ": chunked on three threads equals whole on one");
    const std::vector<float> batch = single->run(many, 1);
    check(batch == several->run(many, 70), what + ": token by token equals in one go");
    check(batch == several->run(many, 20), what + ": batches are the same however they are cut");
    check(std::memcmp(batch.data(), whole.data(), size_t(70 * SmallModel::VOCABULARY) * 4) == 0,
          what + ": alone equals in company");
    float largest = 0.0f;
    bool numbers = true;
    for (const float logit : whole) {
        numbers = numbers && logit - logit == 0.0f;
        largest = logit > largest ? logit : largest;
    }
    check(numbers && largest > 0.01f, what + ": logits are numbers that say something");
}

}  // namespace linnet
