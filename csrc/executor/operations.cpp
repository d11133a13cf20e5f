// SPDX-License-Identifier: Apache-2.0
// Row-wise operations.
#include "operations.h"

#include <cstring>
#include <stdexcept>

namespace linnet {

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

const Value& expect(const Executor& executor, int value, ValueType type, const char* message) {
    const Value& found = executor.value(value);
    require(found.type == type, message);
    return found;
}

void expect_same_shape(const Executor& executor, int a, int b, const char* message) {
    const Value &x = executor.value(a), &y = executor.value(b);
    require(x.span() == y.span() && x.width == y.width, message);
}

namespace {

void expect_map(const Executor& executor, int input, int output, const char* message) {
    expect(executor, input, ValueType::fp32, message);
    expect(executor, output, ValueType::fp32, message);
    expect_same_shape(executor, input, output, message);
}

std::pair<int64_t, RowSpan> shape(const Executor& executor, int value) {
    return {executor.value(value).width, executor.value(value).span()};
}

// Wraps a callable as a row operation; `cost` in elements per row.
template <typename Body>
class Simple final : public RowOperation {
  public:
    Simple(RowSpan rows, int64_t cost, Body body) : RowOperation(rows, cost), body_(std::move(body)) {}
    void run_rows(const Rows& rows) override { body_(rows); }

  private:
    Body body_;
};

template <typename Body>
Made simple(RowSpan rows, int64_t cost, Body body) {
    return std::make_unique<Simple<Body>>(rows, cost, std::move(body));
}

}  // namespace

Made make_embed(Executor& executor, int output, const LinearWeight& table, bool positions) {
    const Value& to = expect(executor, output, ValueType::fp32, "embed writes fp32");
    require(to.rows == RowCount::tokens && to.width == table.columns, "embed: table columns and output width differ");
    require(positions || table.rows >= executor.limits().vocabulary,
            "embed: the table has fewer rows than the vocabulary");
    if (positions) executor.bound_positions(table.rows);
    require(table.readable(), "embed: a table that is read as tiles has none");
    return simple(RowCount::tokens, to.width, [=, width = to.width](const Rows& rows) {
        const int32_t* ids = (positions ? rows.step.batch.positions : rows.step.batch.token_ids) + rows.first;
        float* y = rows.fp32(output);
        for (int64_t row = 0; row < rows.count; ++row) {
            rows.step.kernels.linear->decode_row(table, ids[row], y + row * width);
        }
    });
}

Made make_norm(Executor& executor, int input, int output, const NormAttributes& attributes) {
    expect_map(executor, input, output, "norm: input and output are fp32 of one shape");
    const auto [width, count] = shape(executor, input);
    require(attributes.size > 0 && width % attributes.size == 0, "norm: size must divide the width");
    require(attributes.gain != nullptr, "norm: a gain is needed");
    require(attributes.gains == attributes.size || attributes.gains == width,
            "norm: gains are those of a run or of the whole width");
    require(attributes.flavour == NormFlavour::layer || !attributes.bias, "norm: rms has no bias");
    return simple(count, 2 * width, [=, width = width, a = attributes](const Rows& rows) {
        const KernelTable& kernels = rows.step.kernels;
        const float* x = rows.fp32(input);
        float* y = rows.fp32(output);
        if (a.flavour == NormFlavour::rms) {
            kernels.rms_norm(x, y, rows.count, width, a.size, a.gain, a.gains, a.offset, a.epsilon);
        } else {
            kernels.layer_norm(x, y, rows.count, width, a.size, a.gain, a.bias, a.gains, a.offset, a.epsilon);
        }
    });
}

Made make_add(Executor& executor, int a, int b, int output) {
    expect_map(executor, a, output, "add: inputs and output are fp32 of one shape");
    expect_map(executor, b, output, "add: inputs and output are fp32 of one shape");
    const auto [width, count] = shape(executor, a);
    return simple(count, width, [=, width = width](const Rows& rows) {
        rows.step.kernels.add(rows.fp32(a), rows.fp32(b), rows.fp32(output), rows.count * width);
    });
}

Made make_add_row(Executor& executor, int input, int output, const float* row) {
    expect_map(executor, input, output, "add: input and output are fp32 of one shape");
    const auto [width, count] = shape(executor, input);
    return simple(count, width, [=, width = width](const Rows& rows) {
        const float* x = rows.fp32(input);
        float* y = rows.fp32(output);
        for (int64_t i = 0; i < rows.count; ++i) rows.step.kernels.add(x + i * width, row, y + i * width, width);
    });
}

Made make_scale(Executor& executor, int input, int output, float factor) {
    expect_map(executor, input, output, "scale: input and output are fp32 of one shape");
    const auto [width, count] = shape(executor, input);
    return simple(count, width, [=, width = width](const Rows& rows) {
        rows.step.kernels.scale(rows.fp32(input), rows.fp32(output), rows.count * width, factor);
    });
}

Made make_softcap(Executor& executor, int input, int output, float limit) {
    expect_map(executor, input, output, "softcap: input and output are fp32 of one shape");
    require(limit > 0.0f, "softcap: the limit must be positive");
    const auto [width, count] = shape(executor, input);
    return simple(count, 8 * width, [=, width = width](const Rows& rows) {
        rows.step.kernels.softcap(rows.fp32(input), rows.fp32(output), rows.count * width, limit);
    });
}

Made make_hadamard(Executor& executor, int input, int output, int64_t size) {
    expect_map(executor, input, output, "hadamard: input and output are fp32 of one shape");
    const auto [width, count] = shape(executor, input);
    require(size > 1 && (size & (size - 1)) == 0 && width % size == 0,
            "hadamard: the size must be a power of two that divides the width");
    return simple(count, 4 * width, [=, width = width](const Rows& rows) {
        rows.step.kernels.hadamard(rows.fp32(input), rows.fp32(output), rows.count * width, size);
    });
}

Made make_gate(Executor& executor, int input, int up, int output, const Gating& gating) {
    expect_map(executor, input, output, "gate: inputs and output are fp32 of one shape");
    if (up >= 0) expect_map(executor, up, output, "gate: inputs and output are fp32 of one shape");
    const auto [width, count] = shape(executor, input);
    return simple(count, 8 * width, [=, width = width](const Rows& rows) {
        rows.step.kernels.gate(rows.fp32(input), up >= 0 ? rows.fp32(up) : nullptr, rows.fp32(output),
                               rows.count * width, gating);
    });
}

Made make_gate_pairs(Executor& executor, int input, int output, const Gating& gating) {
    constexpr int64_t RUN = 256;  // pairs that are taken apart at a time
    const Value& from = expect(executor, input, ValueType::fp32, "gate: input and output are fp32");
    const Value& to = expect(executor, output, ValueType::fp32, "gate: input and output are fp32");
    require(from.span() == to.span() && from.width == 2 * to.width, "gate: the input holds pairs, one for an output");
    return simple(to.span(), 8 * to.width, [=, width = to.width](const Rows& rows) {
        alignas(64) float gates[RUN], ups[RUN];
        const float* x = rows.fp32(input);
        float* y = rows.fp32(output);
        for (int64_t left = rows.count * width; left > 0; left -= RUN) {
            const int64_t n = left < RUN ? left : RUN;
            for (int64_t i = 0; i < n; ++i) {
                gates[i] = x[2 * i];
                ups[i] = x[2 * i + 1];
            }
            rows.step.kernels.gate(gates, ups, y, n, gating);
            x += 2 * n;
            y += n;
        }
    });
}

Made make_rope(Executor& executor, int input, int output, const RopeAttributes& attributes) {
    expect_map(executor, input, output, "rope: input and output are fp32 of one shape");
    const Value& from = executor.value(input);
    const RopeTable& table = executor.rope_table(attributes.table);
    require(from.rows == RowCount::tokens, "rope: rows are tokens");
    require(attributes.head_size > 0 && from.width % attributes.head_size == 0,
            "rope: head_size must divide the width");
    require(
        attributes.rotary_size > 0 && attributes.rotary_size % 2 == 0 && attributes.rotary_size <= attributes.head_size,
        "rope: rotary_size must be even and at most head_size");
    require(table.half() == attributes.rotary_size / 2, "rope: one inverse frequency per pair is needed");
    return simple(RowCount::tokens, 2 * from.width, [=, width = from.width, a = attributes, &table](const Rows& rows) {
        rows.step.kernels.rope(rows.fp32(input), rows.fp32(output), rows.count, width, a.head_size, a.rotary_size,
                               a.style, rows.step.batch.positions + rows.first, table.cosine(), table.sine());
    });
}

Made make_gather(Executor& executor, int input, int output) {
    const Value& from = expect(executor, input, ValueType::fp32, "gather reads fp32");
    const Value& to = expect(executor, output, ValueType::fp32, "gather writes fp32");
    require(from.width == to.width && from.rows == RowCount::tokens && to.rows == RowCount::outputs,
            "gather: token rows of one width become output rows");
    require(from.chain < 0, "gather reads other rows than its own, so no value of its chain");
    return simple(RowCount::outputs, from.width, [=, width = from.width](const Rows& rows) {
        const float* x = rows.step.fp32(input);
        float* y = rows.fp32(output);
        for (int64_t i = 0; i < rows.count; ++i) {
            std::memcpy(y + i * width, x + rows.step.batch.output_rows[rows.first + i] * width, size_t(width) * 4);
        }
    });
}

Made make_leading(Executor& executor, int input, int output) {
    const Value& from = expect(executor, input, ValueType::fp32, "leading reads fp32");
    const Value& to = expect(executor, output, ValueType::fp32, "leading writes fp32");
    require(from.width == to.width && from.rows == RowCount::outputs && to.rows == RowCount::logits,
            "leading: of output rows those of the logits are taken");
    require(from.chain < 0, "leading reads other rows than its own, so no value of its chain");
    return simple(RowCount::logits, from.width, [=, width = from.width](const Rows& rows) {
        std::memcpy(rows.fp32(output), rows.step.fp32(input) + rows.first * width, size_t(rows.count * width) * 4);
    });
}

Made make_cast(Executor& executor, int input, int output) {
    const Value& from = executor.value(input);
    const ValueType to = executor.value(output).type;
    expect_same_shape(executor, input, output, "cast: input and output have one shape");
    const bool widen = to == ValueType::fp32 && (from.type == ValueType::bf16 || from.type == ValueType::fp16);
    const bool narrow = from.type == ValueType::fp32 && (to == ValueType::bf16 || to == ValueType::fp16);
    require(widen || narrow, "cast: between fp32 and bf16 or fp16 only");
    const ValueType half = widen ? from.type : to;
    return simple(from.span(), from.width, [=, width = from.width](const Rows& rows) {
        const LinearKernels& kernels = *rows.step.kernels.linear;
        if (narrow) {
            const auto cast = half == ValueType::bf16 ? kernels.cast_bf16 : kernels.cast_fp16;
            cast(rows.fp32(input), rows.half(output), rows.count * width);
        } else {
            const auto cast = half == ValueType::bf16 ? kernels.widen_bf16 : kernels.widen_fp16;
            cast(rows.half(input), rows.fp32(output), rows.count * width);
        }
    });
}

Made make_quantise(Executor& executor, int input, int output) {
    const Value& from = expect(executor, input, ValueType::fp32, "quantise reads fp32");
    expect(executor, output, ValueType::int8, "quantise writes int8");
    expect_same_shape(executor, input, output, "quantise: input and output have one shape");
    return simple(from.span(), 2 * from.width, [=, width = from.width](const Rows& rows) {
        rows.step.kernels.linear->quantise_rows(rows.fp32(input), width, rows.quantised(output), 0, rows.count);
    });
}

Made make_round(Executor& executor, int input, int output, const Rounding& rounding) {
    expect_map(executor, input, output, "round: input and output are fp32 of one shape");
    const auto [width, rows] = shape(executor, input);
    require(rounding.group_size > 0, "round: group_size must be positive");
    require(rounding.dynamic || (rounding.scale > 0.0f && rounding.scale < __builtin_inff()),
            "round: a static scale must be positive and finite");
    return simple(rows, 4 * width, [=, width = width](const Rows& rows) {
        rows.step.kernels.round_rows(rows.fp32(input), rows.fp32(output), rows.count, width, rounding);
    });
}

Made make_order_columns(Executor& executor, int input, int output, const int32_t* order) {
    expect_map(executor, input, output, "order_columns: input and output are fp32 of one shape");
    const auto [width, rows] = shape(executor, input);
    for (int64_t c = 0; c < width; ++c) {
        require(order[c] >= 0 && order[c] < width, "order_columns: the order names columns that are not there");
    }
    return simple(rows, 2 * width, [=, width = width](const Rows& rows) {
        const float* x = rows.fp32(input);
        float* y = rows.fp32(output);
        for (int64_t row = 0; row < rows.count; ++row, x += width, y += width) {
            for (int64_t c = 0; c < width; ++c) y[c] = x[order[c]];
        }
    });
}

Made make_join_heads(Executor& executor, int a, int b, int output, int64_t heads, bool shared) {
    const Value& first = expect(executor, a, ValueType::fp32, "join_heads reads fp32");
    const Value& second = expect(executor, b, ValueType::fp32, "join_heads reads fp32");
    const Value& to = expect(executor, output, ValueType::fp32, "join_heads writes fp32");
    require(first.span() == to.span() && second.span() == to.span(),
            "join_heads: inputs and output have the same rows");
    require(heads > 0 && second.width % heads == 0 && (shared || first.width % heads == 0),
            "join_heads: the parts of all heads are equally wide");
    const int64_t head = shared ? first.width : first.width / heads, tail = second.width / heads;
    require(to.width == heads * (head + tail), "join_heads: the output is as wide as what is joined");
    return simple(to.span(), to.width, [=, width = first.width](const Rows& rows) {
        const float* x = rows.fp32(a);
        const float* own = rows.fp32(b);
        float* y = rows.fp32(output);
        for (int64_t row = 0; row < rows.count; ++row, x += width) {
            for (int64_t h = 0; h < heads; ++h, own += tail, y += head + tail) {
                std::memcpy(y, shared ? x : x + h * head, size_t(head) * 4);
                std::memcpy(y + head, own, size_t(tail) * 4);
            }
        }
    });
}

Made make_sparse_linear(Executor& executor, int input, int output, const float* values, const int32_t* columns,
                        int64_t n) {
    const Value& from = expect(executor, input, ValueType::fp32, "sparse_linear reads fp32");
    const Value& to = expect(executor, output, ValueType::fp32, "sparse_linear writes fp32");
    require(from.rows == to.rows, "sparse_linear: input and output have the same rows");
    const int64_t columns_in = from.width, outputs = to.width;
    for (int64_t i = 0; i < outputs * n; ++i) {
        require(columns[i] >= 0 && columns[i] < columns_in, "sparse_linear: there are no such columns");
    }
    return simple(to.span(), 2 * outputs * n, [=](const Rows& rows) {
        const float* x = rows.fp32(input);
        float* y = rows.fp32(output);
        for (int64_t row = 0; row < rows.count; ++row, x += columns_in, y += outputs) {
            for (int64_t o = 0; o < outputs; ++o) {
                float sum = 0.0f;
                for (int64_t i = o * n; i < (o + 1) * n; ++i) sum += values[i] * x[columns[i]];
                y[o] = sum;
            }
        }
    });
}

Made make_dequantise(Executor& executor, int input, int output) {
    expect(executor, input, ValueType::int8, "dequantise reads int8");
    const Value& to = expect(executor, output, ValueType::fp32, "dequantise writes fp32");
    expect_same_shape(executor, input, output, "dequantise: input and output have one shape");
    return simple(to.span(), to.width, [=, width = to.width](const Rows& rows) {
        rows.step.kernels.linear->dequantise_rows(rows.quantised(input), rows.fp32(output), width, 0, rows.count);
    });
}

}  // namespace linnet
