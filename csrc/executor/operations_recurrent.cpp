// SPDX-License-Identifier: Apache-2.0
// Conv and Scan: what carries a state through a sequence. The unit of work is all rows of one sequence and a run of
// channels.
#include <algorithm>

#include "operations.h"

namespace linnet {

namespace {

constexpr int64_t RUNS_PER_THREAD = 4;
constexpr int64_t LEAST_CHANNELS = 64;  // of a run: some cache lines of a row

// work(sequence rows, first channel, end) for every sequence and run of channels.
template <typename Work>
void over_sequences(const Step& step, int64_t width, int state, const Work& work) {
    const Batch& batch = step.batch;
    const int64_t wanted = divide_up(step.pool.threads() == 1 ? 1 : RUNS_PER_THREAD * step.pool.threads(),
                                     std::max<int64_t>(batch.sequences, 1));
    const int64_t run = std::max(divide_up(divide_up(width, wanted), LEAST_CHANNELS) * LEAST_CHANNELS, LEAST_CHANNELS);
    const int64_t runs = divide_up(width, run);
    step.pool.run(batch.sequences * runs, [&](int64_t item, int) {
        const int64_t sequence = item / runs, begin = item % runs * run, first = batch.query_start[sequence];
        SequenceRows rows;
        rows.rows = batch.query_start[sequence + 1] - first;
        rows.state = step.carried(state, sequence);
        rows.fresh = batch.positions[first] == 0;
        work(rows, first, begin, std::min(begin + run, width));
    });
}

const Value& tokens_of(const Executor& executor, int value, int64_t width, const char* message) {
    const Value& found = expect(executor, value, ValueType::fp32, message);
    require(found.rows == RowCount::tokens && found.width == width, message);
    return found;
}

class Conv final : public Operation {
  public:
    Conv(Executor& executor, int input, int output, int state, const ConvCall& call)
        : input_(input), output_(output), state_(state), call_(call) {
        require(call.width > 0 && call.taps > 1, "conv: two taps or more");
        tokens_of(executor, input, call.width, "conv: the input is fp32 [tokens, width]");
        tokens_of(executor, output, call.width, "conv: the output is fp32 [tokens, width]");
        require(executor.slot_state_numbers(state) == (call.taps - 1) * call.width,
                "conv: the state is [taps - 1, width]");
    }

    void run(const Step& step) override {
        over_sequences(step, call_.width, state_, [&](SequenceRows& rows, int64_t first, int64_t begin, int64_t end) {
            rows.x = step.fp32(input_) + first * call_.width;
            rows.y = step.fp32(output_) + first * call_.width;
            step.kernels.conv(call_, rows, begin, end);
        });
    }

  private:
    int input_, output_, state_;
    ConvCall call_;
};

class Scan final : public Operation {
  public:
    Scan(Executor& executor, int input, int steps, int in, int out, int output, int state, const ScanCall& call)
        : input_(input), steps_(steps), in_(in), out_(out), output_(output), state_(state), call_(call) {
        require(call.width > 0 && call.states > 0 && call.states <= ScanCall::MOST_STATES, "scan: 1 to 256 states");
        require(call.head_size > 0 && call.width % call.head_size == 0, "scan: heads tile the width");
        require(call.groups > 0 && call.width % call.groups == 0, "scan: groups tile the width");
        tokens_of(executor, input, call.width, "scan: the input is fp32 [tokens, width]");
        tokens_of(executor, output, call.width, "scan: the output is fp32 [tokens, width]");
        tokens_of(executor, steps, call.width / call.head_size, "scan: steps are fp32 [tokens, heads]");
        tokens_of(executor, in, call.groups * call.states, "scan: B is fp32 [tokens, groups * states]");
        tokens_of(executor, out, call.groups * call.states, "scan: C is fp32 [tokens, groups * states]");
        require(executor.slot_state_numbers(state) == call.states * call.width, "scan: the state is [states, width]");
    }

    void run(const Step& step) override {
        const int64_t heads = call_.width / call_.head_size, inner = call_.groups * call_.states;
        over_sequences(step, call_.width, state_, [&](SequenceRows& rows, int64_t first, int64_t begin, int64_t end) {
            rows.x = step.fp32(input_) + first * call_.width;
            rows.y = step.fp32(output_) + first * call_.width;
            rows.steps = step.fp32(steps_) + first * heads;
            rows.in = step.fp32(in_) + first * inner;
            rows.out = step.fp32(out_) + first * inner;
            step.kernels.scan(call_, rows, begin, end);
        });
    }

  private:
    int input_, steps_, in_, out_, output_, state_;
    ScanCall call_;
};

}  // namespace

Made make_conv(Executor& executor, int input, int output, int state, const ConvCall& call) {
    return std::make_unique<Conv>(executor, input, output, state, call);
}

Made make_scan(Executor& executor, int input, int steps, int in, int out, int output, int state, const ScanCall& call) {
    return std::make_unique<Scan>(executor, input, steps, in, out, output, state, call);
}

}  // namespace linnet
