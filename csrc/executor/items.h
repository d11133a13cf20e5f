// SPDX-License-Identifier: Apache-2.0
// How the products of linears are dealt out to threads: blocks of rows times runs of outputs.
#pragma once

#include <algorithm>

#include "operations.h"

namespace linnet {

// Items of work: at least so many per thread, so that a core that is busy elsewhere takes fewer, and none longer than
// some tenths of a millisecond, so that nobody waits long for the last one, or for one whose core was taken away.
constexpr int64_t ITEMS_PER_THREAD = 16;
constexpr int64_t ITEM_MULTIPLIES = 32 << 20;

// Items of one run follow each other, so that its weights are still near.
struct Items {
    int64_t rows, block, blocks;  // block: rows of an item
    int64_t outputs, run, count;  // run: outputs of an item, whole units

    int64_t row(int64_t item) const { return item % blocks * block; }
    int64_t row_count(int64_t item) const { return std::min(block, rows - row(item)); }
    int64_t begin(int64_t item) const { return item / blocks * run; }
    int64_t end(int64_t item) const { return std::min(begin(item) + run, outputs); }
};

// `cost` multiplications per row and output; `alike`: how many such products are dealt out together. What the kernel
// likes yields where it would leave threads without work.
inline Items deal_out(const ThreadPool& pool, int64_t rows, int64_t outputs, int64_t unit, int64_t cost,
                      const ItemShape& liked, int64_t most_outputs, int64_t alike = 1) {
    const int64_t blocks = divide_up(rows, liked.rows), block = divide_up(rows, blocks), threads = pool.threads();
    int64_t run = outputs;
    if (threads > 1) {
        const int64_t quick = std::max<int64_t>(ITEM_MULTIPLIES / (block * cost), 1);
        const int64_t fair = divide_up(alike * outputs * blocks, threads * ITEMS_PER_THREAD / 4);
        run = std::min(quick, divide_up(alike * outputs * blocks, threads * ITEMS_PER_THREAD));
        run = std::max(run, std::min(liked.outputs, fair));
    }
    run = std::min(run, outputs);
    run = std::max(std::min(divide_up(run, unit), most_outputs / unit), int64_t(1)) * unit;
    return {rows, block, blocks, outputs, run, divide_up(outputs, run) * blocks};
}

}  // namespace linnet
