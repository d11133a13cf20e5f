// SPDX-License-Identifier: Apache-2.0
// What adapters add to the results of linears of one input. Rows are sorted by adapter once a step; those of one
// adapter go through its two narrow matrices where they lie, so nothing is copied, and a row costs what its own adapter
// costs. Which other rows there are changes no bit of a row.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "low_rank.h"

namespace linnet {

namespace {

constexpr int64_t ITEM_ROWS = 32;              // of one item at most
constexpr int64_t ITEM_MULTIPLIES = 1 << 17;   // some microseconds
constexpr int64_t LEAST_MULTIPLIES = 1 << 17;  // of all items, worth handing to another core
constexpr int64_t LEAST_BYTES = 1 << 16;       // of their matrices likewise: read whole, however few rows there are

int64_t panels(const NarrowWeight& weight) { return divide_up(weight.outputs, NarrowWeight::PANEL); }
int64_t cost(const NarrowWeight& weight) { return weight.columns * NarrowWeight::PANEL; }  // of a row and a panel

void check(const NarrowWeight& weight, int64_t outputs, int64_t columns) {
    require(weight.panels != nullptr, "low rank: a term has no numbers");
    require(weight.outputs == outputs && weight.columns == columns, "low rank: a term has another shape");
}

}  // namespace

void AdapterRows::sort(const Batch& batch, RowCount kind) {
    const int64_t count = kind == RowCount::tokens ? batch.tokens : batch.outputs;
    const auto adapter = [&](int64_t row) {
        return batch.adapters[kind == RowCount::tokens ? row : batch.output_rows[row]];
    };
    rows.clear();
    runs.clear();
    for (int64_t row = 0; row < count; ++row)
        if (adapter(row) >= 0) rows.push_back(int32_t(row));
    std::stable_sort(rows.begin(), rows.end(), [&](int32_t a, int32_t b) { return adapter(a) < adapter(b); });
    for (size_t i = 0; i < rows.size(); ++i) {
        const int32_t own = adapter(rows[i]);
        if (runs.empty() || runs.back().adapter != own) runs.push_back({own, int64_t(i), 0});
        ++runs.back().rows;
    }
}

LowRankAdds::LowRankAdds(Executor& executor, int x, const std::vector<int>& inputs, const std::vector<int>& outputs)
    : x_(x) {
    const Value& from = expect(executor, x, ValueType::fp32, "low rank: reads fp32");
    require(from.chain < 0 && from.each == 1, "low rank: reads rows of the arena");
    require(!inputs.empty() && inputs.size() == outputs.size(), "low rank: one output for each input is needed");
    rows_ = from.rows;
    columns_ = from.width;
    for (size_t i = 0; i < inputs.size(); ++i) {
        const Value& y = expect(executor, inputs[i], ValueType::fp32, "low rank: adds to fp32");
        const Value& to = expect(executor, outputs[i], ValueType::fp32, "low rank: writes fp32");
        expect_same_shape(executor, inputs[i], outputs[i], "low rank: input and output have one shape");
        require(y.span() == from.span() && y.chain < 0 && to.chain < 0, "low rank: rows of the arena, as many as x's");
        sites_.push_back({inputs[i], outputs[i], to.width, y.offset == to.offset, {}});
    }
}

void LowRankAdds::set(int64_t site, int64_t adapter, const std::optional<LowRankTerm>& term) {
    require(site >= 0 && site < int64_t(sites_.size()) && adapter >= 0, "low rank: there is no such place");
    Site& own = sites_[size_t(site)];
    if (term) {
        require(term->down.outputs >= 1, "low rank: a term has a rank of at least 1");
        check(term->down, term->up.columns, columns_);
        check(term->up, own.width, term->down.outputs);
    }
    if (int64_t(own.terms.size()) <= adapter) own.terms.resize(size_t(adapter) + 1);
    own.terms[size_t(adapter)] = term;
}

void LowRankAdds::run(const Step& step) {
    for (const Site& site : sites_) {
        if (!site.in_place) copy(step, site);
    }
    const AdapterRows& sorted = step.executor.adapter_rows(rows_);
    if (sorted.runs.empty()) return;
    parts_.clear();
    int64_t floats = 0;
    for (const AdapterRows::Run& run : sorted.runs) {
        for (const Site& site : sites_) {
            if (run.adapter >= int64_t(site.terms.size()) || !site.terms[size_t(run.adapter)]) continue;
            const LowRankTerm& term = *site.terms[size_t(run.adapter)];
            parts_.push_back({&site, &term, sorted.rows.data() + run.first, run.rows, floats});
            floats += divide_up(run.rows * term.down.outputs, 16) * 16;
        }
    }
    if (parts_.empty()) return;
    Buffer& memory = step.executor.shared_memory();
    memory.reserve(floats * 4);
    float* narrow = reinterpret_cast<float*>(memory.data());
    deal_out_parts(
        step, [](const Part& part) { return part.term->down; },
        [&](const Part& part) {
            const NarrowWeight& down = part.term->down;
            return LowRankCall{down,         step.fp32(x_), columns_,          part.rows, narrow + part.first,
                               down.outputs, nullptr,       part.term->factor, false};
        });
    deal_out_parts(
        step, [](const Part& part) { return part.term->up; },
        [&](const Part& part) {
            const NarrowWeight& up = part.term->up;
            return LowRankCall{up,
                               narrow + part.first,
                               up.columns,
                               nullptr,
                               step.fp32(part.site->output),
                               part.site->width,
                               part.rows,
                               1.0f,
                               true};
        });
}

void LowRankAdds::copy(const Step& step, const Site& site) const {
    const float* from = step.fp32(site.input);
    float* to = step.fp32(site.output);
    step.over_rows(step.rows(site.output), site.width, 1, [&](int64_t begin, int64_t end, int) {
        std::memcpy(to + begin * site.width, from + begin * site.width, size_t((end - begin) * site.width) * 4);
    });
}

template <typename WeightOf, typename CallOf>
void LowRankAdds::deal_out_parts(const Step& step, const WeightOf& weight_of, const CallOf& call_of) {
    items_.clear();
    int64_t multiplies = 0, bytes = 0;
    for (size_t i = 0; i < parts_.size(); ++i) {
        const Part& part = parts_[i];
        const NarrowWeight weight = weight_of(part);
        multiplies += part.count * panels(weight) * cost(weight);
        bytes += panels(weight) * cost(weight) * (weight.bf16 ? 2 : 4);
        for (int64_t row = 0; row < part.count; row += ITEM_ROWS) {
            const int64_t end = std::min(row + ITEM_ROWS, part.count);
            const int64_t run = std::max<int64_t>(ITEM_MULTIPLIES / ((end - row) * cost(weight)), 1);
            for (int64_t panel = 0; panel < panels(weight); panel += run) {
                items_.push_back({i, row, end, panel, std::min(panel + run, panels(weight))});
            }
        }
    }
    const auto body = [&](int64_t index, int) {
        const Item& item = items_[size_t(index)];
        step.kernels.low_rank(call_of(parts_[item.part]), item.row, item.row_end, item.panel, item.panel_end);
    };
    if (multiplies >= LEAST_MULTIPLIES || bytes >= LEAST_BYTES) return step.pool.run(int64_t(items_.size()), body);
    for (int64_t index = 0; index < int64_t(items_.size()); ++index) body(index, 0);
}

}  // namespace linnet
