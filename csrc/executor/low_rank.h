// SPDX-License-Identifier: Apache-2.0
// The operation of adapters: terms come and go between steps, borrowed from whoever gives them.
#pragma once

#include <optional>
#include <vector>

#include "operations.h"

namespace linnet {

// y += up (factor * (down x)).
struct LowRankTerm {
    NarrowWeight down, up;
    float factor = 1.0f;
};

class LowRankAdds final : public Operation {
  public:
    // One site for each pair of an input and an output, which may have one place in the arena.
    LowRankAdds(Executor& executor, int x, const std::vector<int>& inputs, const std::vector<int>& outputs);

    // What an adapter adds at a site; none: nothing.
    void set(int64_t site, int64_t adapter, const std::optional<LowRankTerm>& term);
    void run(const Step& step) override;

  private:
    struct Site {
        int input, output;
        int64_t width;
        bool in_place;
        std::vector<std::optional<LowRankTerm>> terms;  // by adapter
    };
    // The rows of one adapter at one site.
    struct Part {
        const Site* site;
        const LowRankTerm* term;
        const int32_t* rows;
        int64_t count, first;  // first: where their products with the first matrix begin
    };
    struct Item {
        size_t part;
        int64_t row, row_end, panel, panel_end;
    };

    void copy(const Step& step, const Site& site) const;
    template <typename WeightOf, typename CallOf>
    void deal_out_parts(const Step& step, const WeightOf& weight_of, const CallOf& call_of);

    int x_;
    RowCount rows_ = RowCount::tokens;
    int64_t columns_ = 0;
    std::vector<Site> sites_;
    // Of the step that runs.
    std::vector<Part> parts_;
    std::vector<Item> items_;
};

}  // namespace linnet
