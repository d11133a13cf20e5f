// SPDX-License-Identifier: Apache-2.0
// Experts: a token's rows go to the few feed-forwards that were chosen for it.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "items.h"

namespace linnet {

namespace {

class Route final : public RowOperation {
  public:
    Route(Executor& executor, int scores, int ids, int weights, const Routing& routing)
        : RowOperation(executor.value(scores).span(), 2 * routing.experts * routing.chosen),
          scores_(scores),
          ids_(ids),
          weights_(weights),
          routing_(routing) {
        const Value& from = expect(executor, scores, ValueType::fp32, "route reads fp32");
        const Value& to = expect(executor, ids, ValueType::int32, "route writes int32");
        expect(executor, weights, ValueType::fp32, "route writes fp32");
        expect_same_shape(executor, ids, weights, "route: as many weights as experts are chosen");
        require(from.span() == to.span() && from.each == 1, "route: input and outputs have the same rows");
        require(routing.chosen >= 1 && routing.chosen <= routing.experts && routing.experts <= MOST_EXPERTS,
                "route: chosen is 1 to experts, which are at most 1024");
        require(routing.groups >= 1 && routing.experts % routing.groups == 0 && routing.groups_chosen >= 1 &&
                    routing.groups_chosen <= routing.groups &&
                    routing.experts / routing.groups * routing.groups_chosen >= routing.chosen,
                "route: groups must tile the experts, and those that are looked at hold as many as are chosen");
        require(routing.group_best >= 1 && routing.group_best <= routing.experts / routing.groups,
                "route: a group ranks by 1 of its experts to all of them");
    }

    void run_rows(const Rows& rows) override {
        rows.step.kernels.route(rows.fp32(scores_), rows.int32(ids_), rows.fp32(weights_), rows.count, routing_);
    }

  private:
    int scores_, ids_, weights_;
    Routing routing_;
};

class Combine final : public RowOperation {
  public:
    Combine(Executor& executor, int input, int weights, int output)
        : RowOperation(executor.value(output).span(), 2 * executor.value(input).width * executor.value(weights).width),
          input_(input),
          weights_(weights),
          output_(output),
          chosen_(executor.value(weights).width),
          width_(executor.value(input).width) {
        const Value& from = expect(executor, input, ValueType::fp32, "combine reads fp32");
        const Value& by = expect(executor, weights, ValueType::fp32, "combine reads fp32");
        const Value& to = expect(executor, output, ValueType::fp32, "combine writes fp32");
        require(to.each == 1 && to.span() == by.span() && from.rows == to.rows && from.each == chosen_,
                "combine: a row of the input for each weight, one of the output for all");
        require(from.width == to.width, "combine: input and output have one width");
        require(chosen_ == 1 || from.chain < 0, "combine reads several rows for one, so no value of its chain");
    }

    void run_rows(const Rows& rows) override {
        const float* x = chosen_ == 1 ? rows.fp32(input_) : rows.step.fp32(input_) + rows.first * chosen_ * width_;
        rows.step.kernels.combine(x, rows.fp32(weights_), rows.fp32(output_), rows.count, chosen_, width_);
    }

  private:
    int input_, weights_, output_;
    int64_t chosen_, width_;
};

int64_t aligned(int64_t bytes) { return divide_up(bytes, 64) * 64; }

// One linear of every expert. A choice is a token's expert of one rank; choices are sorted by expert, and the rows of
// an expert with several are brought together, multiplied as rows of any linear are, and taken back to their places.
// Which other rows an expert has changes no bit of a row.
class Experts final : public Operation {
  public:
    Experts(Executor& executor, int input, int ids, int output, const std::vector<LinearWeight>& weights)
        : input_(input),
          ids_(ids),
          output_(output),
          type_(input_type(executor.value(input).type)),
          group_size_(executor.value(input).group_size),
          weights_(weights) {
        const LinearKernels& kernels = *executor.kernels().linear;
        const Value& from = executor.value(input);
        const Value& to = expect(executor, output, ValueType::fp32, "experts write fp32");
        const Value& chosen = expect(executor, ids, ValueType::int32, "experts are chosen by int32 ids");
        require(from.rows == to.rows && chosen.rows == to.rows && chosen.each == 1 && to.each == chosen.width,
                "experts: a row of the output for each choice");
        require(from.each == 1 || from.each == chosen.width, "experts: a row of the input for each choice or for all");
        require(!weights.empty() && chosen.width <= int64_t(weights.size()), "experts: fewer than are chosen");
        for (const LinearWeight& weight : weights) {
            require(from.width == weight.columns, "experts: the input's width is not the weights' columns");
            require(to.width == weight.rows, "experts: the output's width is not the weights' rows");
            require(weight.readable(), "experts: a weight that is read as tiles has none");
            if (const char* reason = kernels.refuse(weight, type_, from.group_size))
                throw std::invalid_argument(reason);
            executor.need_scratch(kernels.scratch_bytes(weight, type_, chosen.max_rows));
        }
        shared_row_ = from.each == 1 ? chosen.width : 1;
        row_bytes_ = type_ == InputType::fp32 ? from.width * 4 : type_ == InputType::bf16 ? from.width * 2 : 0;
    }

    void run(const Step& step) override {
        const int64_t choices = step.rows(output_);
        if (choices == 0) return;
        sort(step.int32(ids_), choices);
        const bool together = runs_.size() < size_t(choices);  // some expert has several rows
        InputRows sorted;
        float* results = nullptr;
        if (together) {
            results = gather(step, choices, sorted);
        }
        const int64_t width = weights_.front().rows;
        int64_t items = 0;
        for (Run& run : runs_) {
            const LinearWeight& weight = weights_[size_t(run.expert)];
            const LinearKernels& kernels = *step.kernels.linear;
            ItemShape liked = kernels.item_shape(weight, type_, group_size_, run.rows);
            run.items = deal_out(step.pool, run.rows, width, kernels.column_unit(weight, type_), weight.columns, liked,
                                 width, int64_t(runs_.size()));
            run.first_item = items;
            items += run.items.count;
        }
        step.pool.run(items, [&](int64_t item, int worker) {
            const auto after = std::upper_bound(runs_.begin(), runs_.end(), item,
                                                [](int64_t at, const Run& run) { return at < run.first_item; });
            const Run& run = *(after - 1);
            work(step, run, item - run.first_item, sorted, results, worker);
        });
    }

  private:
    struct Run {
        int32_t expert;
        int64_t first, rows;  // of the sorted choices
        Items items;
        int64_t first_item;
    };

    // Choices by expert, those of one in their own order; runs_ are the experts that have any.
    void sort(const int32_t* ids, int64_t choices) {
        counts_.assign(weights_.size() + 1, 0);
        order_.resize(size_t(choices));
        for (int64_t i = 0; i < choices; ++i) ++counts_[size_t(ids[i]) + 1];
        runs_.clear();
        for (size_t expert = 0; expert < weights_.size(); ++expert) {
            const int64_t rows = counts_[expert + 1];
            if (rows > 0) runs_.push_back({int32_t(expert), counts_[expert], rows, {}, 0});
            counts_[expert + 1] += counts_[expert];
        }
        for (int64_t i = 0; i < choices; ++i) order_[size_t(counts_[size_t(ids[i])]++)] = i;
    }

    int64_t source(int64_t choice) const { return choice / shared_row_; }

    // Brings the rows together; returns where their products go.
    float* gather(const Step& step, int64_t choices, InputRows& sorted) {
        const InputRows all = input_rows(step, type_, input_, 0);
        const int64_t groups = all.codes.groups, width = weights_.front().rows;
        const int64_t bytes = type_ == InputType::int8 ? all.codes.row_bytes : row_bytes_;
        const int64_t rows_bytes = aligned(choices * bytes), group_bytes = aligned(choices * groups * 4);
        Buffer& memory = step.executor.shared_memory();
        memory.reserve(rows_bytes + 2 * group_bytes + choices * width * 4);
        char* base = memory.data();
        sorted.plain = base;
        sorted.codes = all.codes;
        sorted.codes.codes = reinterpret_cast<int8_t*>(base);
        sorted.codes.scales = reinterpret_cast<float*>(base + rows_bytes);
        sorted.codes.sums = reinterpret_cast<int32_t*>(base + rows_bytes + group_bytes);
        const char* from = type_ == InputType::int8 ? reinterpret_cast<const char*>(all.codes.codes)
                                                    : static_cast<const char*>(all.plain);
        step.over_rows(choices, bytes, 1, [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t row = source(order_[size_t(i)]);
                std::memcpy(base + i * bytes, from + row * bytes, size_t(bytes));
                if (type_ != InputType::int8) continue;
                std::memcpy(sorted.codes.scales + i * groups, all.codes.scales + row * groups, size_t(groups) * 4);
                std::memcpy(sorted.codes.sums + i * groups, all.codes.sums + row * groups, size_t(groups) * 4);
            }
        });
        return reinterpret_cast<float*>(base + rows_bytes + 2 * group_bytes);
    }

    void work(const Step& step, const Run& run, int64_t item, const InputRows& sorted, float* results,
              int worker) const {
        const LinearKernels& kernels = *step.kernels.linear;
        const LinearWeight& weight = weights_[size_t(run.expert)];
        const int64_t width = weight.rows, begin = run.items.begin(item), end = run.items.end(item);
        float* output = step.fp32(output_);
        if (run.rows == 1) {
            const int64_t choice = order_[size_t(run.first)];
            multiply(kernels, type_, weight, input_rows(step, type_, input_, source(choice)), 1,
                     output + choice * width, width, begin, end, step.scratch(worker));
            return;
        }
        const int64_t first = run.first + run.items.row(item), rows = run.items.row_count(item);
        InputRows x = sorted;
        x.plain = static_cast<const char*>(sorted.plain) + first * row_bytes_;
        x.codes.codes += first * x.codes.row_bytes;
        x.codes.scales += first * x.codes.groups;
        x.codes.sums += first * x.codes.groups;
        multiply(kernels, type_, weight, x, rows, results + first * width, width, begin, end, step.scratch(worker));
        for (int64_t i = first; i < first + rows; ++i) {
            std::memcpy(output + order_[size_t(i)] * width + begin, results + i * width + begin,
                        size_t(end - begin) * 4);
        }
    }

    int input_, ids_, output_;
    InputType type_;
    int64_t group_size_;  // of the input's codes
    std::vector<LinearWeight> weights_;
    int64_t shared_row_ = 1;  // choices that read one row of the input
    int64_t row_bytes_ = 0;   // of plain rows
    // Of the step that runs.
    std::vector<int64_t> counts_, order_;
    std::vector<Run> runs_;
};

}  // namespace

Made make_route(Executor& executor, int scores, int ids, int weights, const Routing& routing) {
    return std::make_unique<Route>(executor, scores, ids, weights, routing);
}

Made make_experts(Executor& executor, int input, int ids, int output, const std::vector<LinearWeight>& weights) {
    return std::make_unique<Experts>(executor, input, ids, output, weights);
}

Made make_combine(Executor& executor, int input, int weights, int output) {
    return std::make_unique<Combine>(executor, input, weights, output);
}

}  // namespace linnet
