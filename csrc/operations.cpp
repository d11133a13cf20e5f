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
    require(x.rows == y.rows && x.width == y.width, message);
}

namespace {

void expect_map(const Executor& executor, int input, int output, const char* message) {
    expect(executor, input, ValueType::fp32, message);
    expect(executor, output, ValueType::fp32, message);
    expect_same_shape(executor, input, output, message);
}

// Wraps a callable as an Operation.
template <typename Body>
class Simple final : public Operation {
  public:
    explicit Simple(Body body) : body_(std::move(body)) {}
    void run(const Step& step) override { body_(step); }

  private:
    Body body_;
};

template <typename Body>
Made simple(Body body) {
    return std::make_unique<Simple<Body>>(std::move(body));
}

}  // namespace

Made make_embed(Executor& executor, int output, const LinearWeight& table) {
    const Value& to = expect(executor, output, ValueType::fp32, "embed writes fp32");
    require(to.rows == RowCount::tokens && to.width == table.columns, "embed: table columns and output width differ");
    require(table.rows >= executor.limits().vocabulary, "embed: the table has fewer rows than the vocabulary");
    return simple([=, width = to.width](const Step& step) {
        step.over_rows(step.batch.tokens, width, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                step.kernels.linear->decode_row(table, step.batch.token_ids[row], step.fp32(output) + row * width);
            }
        });
    });
}

Made make_norm(Executor& executor, int input, int output, const NormAttributes& attributes) {
    expect_map(executor, input, output, "norm: input and output are fp32 of one shape");
    const int64_t width = executor.value(input).width;
    require(attributes.size > 0 && width % attributes.size == 0, "norm: size must divide the width");
    require(attributes.gain != nullptr, "norm: a gain is needed");
    require(attributes.flavour == NormFlavour::layer || !attributes.bias, "norm: rms has no bias");
    return simple([=, a = attributes](const Step& step) {
        step.over_rows(step.rows(input), 2 * width, [&](int64_t begin, int64_t end) {
            const float* x = step.fp32(input) + begin * width;
            float* y = step.fp32(output) + begin * width;
            if (a.flavour == NormFlavour::rms) {
                step.kernels.rms_norm(x, y, end - begin, width, a.size, a.gain, a.offset, a.epsilon);
            } else {
                step.kernels.layer_norm(x, y, end - begin, width, a.size, a.gain, a.bias, a.offset, a.epsilon);
            }
        });
    });
}

Made make_add(Executor& executor, int a, int b, int output) {
    expect_map(executor, a, output, "add: inputs and output are fp32 of one shape");
    expect_map(executor, b, output, "add: inputs and output are fp32 of one shape");
    return simple([=, width = executor.value(a).width](const Step& step) {
        step.over_rows(step.rows(a), width, [&](int64_t begin, int64_t end) {
            const int64_t at = begin * width;
            step.kernels.add(step.fp32(a) + at, step.fp32(b) + at, step.fp32(output) + at, (end - begin) * width);
        });
    });
}

Made make_scale(Executor& executor, int input, int output, float factor) {
    expect_map(executor, input, output, "scale: input and output are fp32 of one shape");
    return simple([=, width = executor.value(input).width](const Step& step) {
        step.over_rows(step.rows(input), width, [&](int64_t begin, int64_t end) {
            const int64_t at = begin * width;
            step.kernels.scale(step.fp32(input) + at, step.fp32(output) + at, (end - begin) * width, factor);
        });
    });
}

Made make_softcap(Executor& executor, int input, int output, float limit) {
    expect_map(executor, input, output, "softcap: input and output are fp32 of one shape");
    require(limit > 0.0f, "softcap: the limit must be positive");
    return simple([=, width = executor.value(input).width](const Step& step) {
        step.over_rows(step.rows(input), 8 * width, [&](int64_t begin, int64_t end) {
            const int64_t at = begin * width;
            step.kernels.softcap(step.fp32(input) + at, step.fp32(output) + at, (end - begin) * width, limit);
        });
    });
}

Made make_gate(Executor& executor, int input, int up, int output, Activation activation) {
    expect_map(executor, input, output, "gate: inputs and output are fp32 of one shape");
    if (up >= 0) expect_map(executor, up, output, "gate: inputs and output are fp32 of one shape");
    return simple([=, width = executor.value(input).width](const Step& step) {
        step.over_rows(step.rows(input), 8 * width, [&](int64_t begin, int64_t end) {
            const int64_t at = begin * width;
            step.kernels.gate(step.fp32(input) + at, up >= 0 ? step.fp32(up) + at : nullptr, step.fp32(output) + at,
                              (end - begin) * width, activation);
        });
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
    return simple([=, width = from.width, a = attributes, &table](const Step& step) {
        step.over_rows(step.batch.tokens, 2 * width, [&](int64_t begin, int64_t end) {
            step.kernels.rope(step.fp32(input) + begin * width, step.fp32(output) + begin * width, end - begin, width,
                              a.head_size, a.rotary_size, a.style, step.batch.positions + begin, table.cosine(),
                              table.sine());
        });
    });
}

Made make_gather(Executor& executor, int input, int output) {
    const Value& from = expect(executor, input, ValueType::fp32, "gather reads fp32");
    const Value& to = expect(executor, output, ValueType::fp32, "gather writes fp32");
    require(from.width == to.width && from.rows == RowCount::tokens && to.rows == RowCount::outputs,
            "gather: token rows of one width become output rows");
    return simple([=, width = from.width](const Step& step) {
        for (int64_t i = 0; i < step.batch.outputs; ++i) {
            std::memcpy(step.fp32(output) + i * width, step.fp32(input) + step.batch.output_rows[i] * width,
                        size_t(width) * 4);
        }
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
    return simple([=, width = from.width](const Step& step) {
        const LinearKernels& kernels = *step.kernels.linear;
        step.over_rows(step.rows(input), width, [&](int64_t begin, int64_t end) {
            const int64_t at = begin * width, n = (end - begin) * width;
            if (narrow) {
                const auto cast = half == ValueType::bf16 ? kernels.cast_bf16 : kernels.cast_fp16;
                cast(step.fp32(input) + at, step.half(output) + at, n);
            } else {
                const auto cast = half == ValueType::bf16 ? kernels.widen_bf16 : kernels.widen_fp16;
                cast(step.half(input) + at, step.fp32(output) + at, n);
            }
        });
    });
}

Made make_quantise(Executor& executor, int input, int output) {
    const Value& from = expect(executor, input, ValueType::fp32, "quantise reads fp32");
    expect(executor, output, ValueType::int8, "quantise writes int8");
    expect_same_shape(executor, input, output, "quantise: input and output have one shape");
    return simple([=, width = from.width](const Step& step) {
        step.over_rows(step.rows(input), 2 * width, [&](int64_t begin, int64_t end) {
            step.kernels.linear->quantise_rows(step.fp32(input), width, step.quantised(output), begin, end);
        });
    });
}

Made make_dequantise(Executor& executor, int input, int output) {
    expect(executor, input, ValueType::int8, "dequantise reads int8");
    const Value& to = expect(executor, output, ValueType::fp32, "dequantise writes fp32");
    expect_same_shape(executor, input, output, "dequantise: input and output have one shape");
    return simple([=, width = to.width](const Step& step) {
        step.over_rows(step.rows(input), width, [&](int64_t begin, int64_t end) {
            step.kernels.linear->dequantise_rows(step.quantised(input), step.fp32(output), width, begin, end);
        });
    });
}

}  // namespace linnet
