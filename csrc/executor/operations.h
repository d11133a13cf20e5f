// SPDX-License-Identifier: Apache-2.0
// One factory per op kind. Each checks shapes and types against the executor's values and throws std::invalid_argument;
// pointers (weights, gains, biases, slopes) are borrowed and must outlive the executor.
#pragma once

#include <memory>
#include <vector>

#include "executor.h"

namespace linnet {

using Made = std::unique_ptr<Operation>;

enum class NormFlavour : int32_t { rms, layer };

struct NormAttributes {
    NormFlavour flavour = NormFlavour::rms;
    int64_t size = 0;
    float epsilon = 0.0f, offset = 0.0f;
    const float* gain = nullptr;  // [gains]
    const float* bias = nullptr;  // [gains] or null
    int64_t gains = 0;            // size: those of every run; or the width
};

struct RopeAttributes {
    int64_t head_size = 0, rotary_size = 0;
    RopeStyle style = RopeStyle::half;
    int table = 0;  // of Executor::add_rope_table
};

struct AttentionAttributes {
    int64_t heads = 0;
    bool rounded = false;  // queries and weights to bf16
    float scale = 1.0f;
    int64_t window = 0;                   // 0: none
    float softcap = 0.0f;                 // 0: none
    const float* alibi_slopes = nullptr;  // [heads] or null
    const float* sinks = nullptr;         // [heads] or null
    bool full = false;                    // not causal
};

Made make_embed(Executor& executor, int output, const LinearWeight& table, bool positions = false);
Made make_norm(Executor& executor, int input, int output, const NormAttributes& attributes);
Made make_add(Executor& executor, int a, int b, int output);
Made make_add_row(Executor& executor, int input, int output, const float* row);  // [width], the same for all
Made make_scale(Executor& executor, int input, int output, float factor);
Made make_softcap(Executor& executor, int input, int output, float limit);
Made make_hadamard(Executor& executor, int input, int output, int64_t size);
Made make_gate(Executor& executor, int input, int up, int output, const Gating& gating);  // up -1: one input
// Of an input that holds gate and up by turns, twice as wide as the output.
Made make_gate_pairs(Executor& executor, int input, int output, const Gating& gating);
Made make_rope(Executor& executor, int input, int output, const RopeAttributes& attributes);
Made make_gather(Executor& executor, int input, int output);
Made make_leading(Executor& executor, int input, int output);
Made make_cast(Executor& executor, int input, int output);
Made make_quantise(Executor& executor, int input, int output);
// The codes as the fp32 numbers they stand for.
Made make_round(Executor& executor, int input, int output, const Rounding& rounding);
// Column c of the output is column order[c] of the input; order [width] is borrowed.
Made make_order_columns(Executor& executor, int input, int output, const int32_t* order);
// Of every head what is a's, then what is b's; `shared`: a is the same for all heads.
Made make_join_heads(Executor& executor, int a, int b, int output, int64_t heads, bool shared);
// y[o] = sum over j of values[o * n + j] * x[columns[o * n + j]], in the order of j; both borrowed.
Made make_sparse_linear(Executor& executor, int input, int output, const float* values, const int32_t* columns,
                        int64_t n);
Made make_dequantise(Executor& executor, int input, int output);
// Several weights over one input share one distribution of work.
Made make_linear(Executor& executor, int input, const std::vector<int>& outputs,
                 const std::vector<LinearWeight>& weights);
// Rows of the weights are rows of the output: activation(gate) * up, or activation(up) where there is one weight;
// rounded to the output's type.
Made make_gated_linear(Executor& executor, int input, int output, const std::vector<LinearWeight>& weights,
                       const Gating& gating);
Made make_route(Executor& executor, int scores, int ids, int weights, const Routing& routing);
// Of every row of ids [rows, chosen] the products with those experts' weights: output [rows, chosen, outputs]. The
// input has a row for each of them or one for all.
Made make_experts(Executor& executor, int input, int ids, int output, const std::vector<LinearWeight>& weights);
Made make_combine(Executor& executor, int input, int weights, int output);
Made make_kv_write(Executor& executor, int key, int value, int state);
Made make_attention(Executor& executor, int query, int output, int state, const AttentionAttributes& attributes);
Made make_conv(Executor& executor, int input, int output, int state, const ConvCall& call);
Made make_scan(Executor& executor, int input, int steps, int in, int out, int output, int state, const ScanCall& call);

// For factories.
inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
InputType input_type(ValueType type);
// Rows that a linear reads, the first of them first.
struct InputRows {
    const void* plain = nullptr;  // fp32 or bf16, one row after the other
    QuantisedRows codes;
};
InputRows input_rows(const Step& step, InputType type, int input, int64_t row);
void multiply(const LinearKernels& kernels, InputType type, const LinearWeight& weight, const InputRows& x,
              int64_t rows, float* y, int64_t ldy, int64_t begin, int64_t end, void* scratch);
// Rows [row, row + rows) of a value times rows [begin, end) of the weight; y is where row `row` and output 0 belong.
void multiply(const Step& step, InputType type, const LinearWeight& weight, int input, int64_t row, int64_t rows,
              float* y, int64_t ldy, int64_t begin, int64_t end, void* scratch);
void require(bool condition, const char* message);
const Value& expect(const Executor& executor, int value, ValueType type, const char* message);
void expect_same_shape(const Executor& executor, int a, int b, const char* message);

}  // namespace linnet
